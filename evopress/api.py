"""The whole job from Python, without configuration files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evopress.compressors.base import Compressor
from evopress.compressors.drop import Drop
from evopress.compressors.gptq import GPTQ
from evopress.compressors.sparsegpt import SparseGPT
from evopress.data.settings import Data
from evopress.evaluation.eval_settings import Eval
from evopress.evaluation.evaluator import EvaluatorSettings
from evopress.export import Export
from evopress.job import Job
from evopress.models.language_model import LanguageModel
from evopress.models.loading import wrap_model
from evopress.models.source import ModelSource
from evopress.pipeline import run_job
from evopress.runtime.json_files import read_json
from evopress.runtime.tracking import Tracker
from evopress.search.base import Search
from evopress.search.guided import Guided
from evopress.search.refinement import Refinement
from evopress.search.selection import Stage
from evopress.space.budget import Budget
from evopress.space.settings import SpaceSettings
from evopress.space.units import Profile


@dataclass(frozen=True)
class Compressed:
    """What a run found. `results` is `results.json`; `folder` holds all files, checkpoints included."""

    profile: Profile
    results: Mapping[str, object]
    folder: Path


def compress(
    model: PreTrainedModel | ModelSource | str,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    budget: Budget,
    folder: str | Path,
    compressor: Compressor | Drop | None = None,
    search: Search | None = None,
    data: Data | None = None,
    eval: Eval | None = None,
    export: Export | None = None,
    tracker: Tracker | None = None,
    space: SpaceSettings | None = None,
    seed: int = 0,
) -> Compressed:
    """Compress a model in memory, or a hub id, folder or GGUF file (a `ModelSource` says more of it), to a budget.

    A model in memory is frozen and otherwise left as it is, and needs its tokenizer. What is not given is GPTQ,
    SparseGPT or block drop by the budget's metric, the cheap search of `search=demo`, and the text that comes with
    Python; all that the configuration's groups build can be given instead.
    A call with the same `folder` and settings goes on where an earlier one was stopped.

    Raises ValueError for settings that cannot work, and for a folder that belongs to other settings.

    A worked example::

        found = evopress.compress(model, tokenizer, budget=Budget(metric="bits", target=3), folder="outputs/mine")
        print(found.results["searched"]["kl"], found.results["uniform"]["kl"])
    """
    folder = Path(folder)
    source: ModelSource | LanguageModel
    if isinstance(model, str):
        source = ModelSource(name=Path(model).name, path=model)
    elif isinstance(model, ModelSource):
        source = model
    elif tokenizer is None:
        raise ValueError("a model in memory needs its tokenizer as the second argument")
    else:
        source = wrap_model(model, tokenizer, type(model).__name__)
    profile = run_job(
        Job(
            model=source,
            data=data or DEMO_DATA,
            compress=compressor or _fitting(budget),
            space=space or SpaceSettings(),
            budget=budget,
            search=search or DEMO_SEARCH,
            evaluator=EvaluatorSettings(),
            eval=eval or Eval(),
            export=export or Export(),
            tracker=tracker or Tracker(),
            seed=seed,
            folder=folder,
            outputs=folder,
        )
    )
    return Compressed(cast(Profile, profile), read_json(folder / "results.json"), folder)


DEMO_DATA = Data(
    source="pydoc",
    window=256,
    calibration_tokens=16384,
    search_tokens=32768,
    validation_tokens=4096,
    test_tokens=8192,
)

DEMO_SEARCH = Guided(
    rounds=2,
    line_tokens=1024,
    table_tokens=1024,
    dampings=[1, 2],
    refinement=Refinement(table_tokens=512, share=0.08, tokens=1024, line_tokens=1536, excerpt=256),
    generations=2,
    generations_per_table=2,
    offspring=6,
    free_share=0.3,
    down_slope=0.0,
    stages=[Stage(survivors=2, tokens=512), Stage(survivors=1, tokens=1024)],
)


def _fitting(budget: Budget) -> Compressor | Drop:
    if budget.metric == "sparsity":
        return SparseGPT(base=float(budget.target))
    return Drop() if budget.metric == "drop" else GPTQ()
