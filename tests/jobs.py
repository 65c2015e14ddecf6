"""Small jobs on tiny models."""

from pathlib import Path

from evopress.compressors.gptq import GPTQ
from evopress.data.settings import Data
from evopress.evaluation.eval_settings import Eval
from evopress.evaluation.evaluator import EvaluatorSettings
from evopress.job import Job
from evopress.models.source import ModelSource
from evopress.runtime.tracking import Tracker
from evopress.search.evolution import Evolution
from evopress.search.selection import Stage
from evopress.space.budget import Budget
from evopress.space.settings import SpaceSettings

SEARCH = Evolution(
    generations=3,
    offspring=4,
    stages=[Stage(survivors=2, tokens=32), Stage(survivors=1, tokens=64)],
    initial_candidates=4,
    initial_tokens=32,
)

DATA = Data(source="pydoc", window=32, calibration_tokens=256, search_tokens=256, validation_tokens=64, test_tokens=128)


def small_job(folder: Path, outputs: Path, model: Path, **changes) -> Job:
    """A job of a few seconds in the run directory `folder`; `changes` replace its settings."""
    settings = dict(
        model=ModelSource(name="tiny", path=str(model), dtype="float32", device="cpu", max_perplexity=1e6),
        data=DATA,
        compress=GPTQ(bits=[2, 3, 4], group_size=32),
        space=SpaceSettings(),
        budget=Budget(metric="bits", target=3),
        search=SEARCH,
        evaluator=EvaluatorSettings(),
        eval=Eval(),
        tracker=Tracker(),
        seed=0,
        folder=folder,
        outputs=outputs,
    )
    return Job(**{**settings, **changes})
