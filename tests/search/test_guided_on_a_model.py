"""The guided search as a whole, on a tiny model."""

import json

import pytest

from evopress.compressors.drop import Drop
from evopress.compressors.gptq import GPTQ
from evopress.compressors.sparsegpt import SparseGPT
from evopress.data.settings import Data
from evopress.evaluation.eval_settings import Eval
from evopress.evaluation.evaluator import Evaluator, EvaluatorSettings
from evopress.models.source import ModelSource
from evopress.pipeline import Job, run_job
from evopress.runtime.tracking import Tracker
from evopress.space.budget import Budget
from evopress.space.settings import SpaceSettings
from tests.search.searches import REFINEMENT, guided
from tests.tiny_models import save_tiny

HALF = Budget(metric="sparsity", target=0.5)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    save_tiny("llama", folder)
    return folder


def job(folder, outputs, model, **changes) -> Job:
    defaults = dict(
        model=ModelSource(name="tiny", path=str(model), dtype="float32", device="cpu", max_perplexity=1e6),
        data=Data(
            source="pydoc", window=32, calibration_tokens=256, search_tokens=256, validation_tokens=64, test_tokens=64
        ),
        compress=GPTQ(bits=[2, 3, 4], group_size=32),
        space=SpaceSettings(),
        budget=Budget(metric="bits", target=3),
        search=guided(generations=2, refinements=1, refinement=REFINEMENT),
        evaluator=EvaluatorSettings(),
        eval=Eval(),
        tracker=Tracker(),
        stages=("database", "search"),
        seed=0,
        folder=folder,
        outputs=outputs,
    )
    return Job(**{**defaults, **changes})


@pytest.mark.parametrize(
    ("compress", "budget"),
    [
        (GPTQ(bits=[2, 3, 4], group_size=32), Budget(metric="bits", target=2.5)),
        pytest.param(
            GPTQ(bits=[2, 3, 4], group_size=32), Budget(metric="size", target="125KB"), marks=pytest.mark.slow
        ),
        pytest.param(SparseGPT(base=0.5, num_levels=2), HALF, marks=pytest.mark.slow),
        (Drop(), Budget(metric="drop", target=1 / 3)),
        (Drop(granularity="block"), Budget(metric="drop", target=1 / 3)),
    ],
    ids=lambda value: str(value)[:24],
)
def test_every_kind_of_budget_on_a_model(compress, budget, tmp_path, model):
    run_job(job(tmp_path / "run", tmp_path, model, compress=compress, budget=budget))
    achieved = json.loads((tmp_path / "run" / "profile.json").read_text())["achieved"]
    if budget.metric == "size":
        assert 124_000 < achieved <= 125_000
    else:
        assert achieved == pytest.approx(float(budget.target))


class Killed(BaseException):
    """Like a kill: nothing in the program catches it."""


@pytest.mark.slow
def test_a_killed_search_resumes_to_the_same_bytes(tmp_path, model, monkeypatch):
    run_job(job(tmp_path / "whole", tmp_path / "outputs", model))
    left, evaluate = iter(range(2)), Evaluator.evaluate

    def dying(self, *args):
        if next(left, None) is None:
            raise Killed
        return evaluate(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "evaluate", dying)
        with pytest.raises(Killed):
            run_job(job(tmp_path / "killed", tmp_path / "outputs", model))
    assert len((tmp_path / "killed" / "search.jsonl").read_text().splitlines()) == 1 + 5  # killed after the third table
    run_job(job(tmp_path / "killed", tmp_path / "outputs", model))
    for name in ("search.jsonl", "profile.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
