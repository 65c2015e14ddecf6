"""Tuning lowers the KL, keeps the better model, and ends with the same bytes after a kill."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from evopress.compressors.gguf import GGUF
from evopress.compressors.rtn import RTN
from evopress.evaluation.context import EvaluationContext
from evopress.tuning import tuner
from evopress.tuning.settings import Tuning
from evopress.tuning.state import TuningResult
from evopress.tuning.task import TuningTask
from evopress.tuning.tuner import tune
from tests.databases import Killed
from tests.tuning.models import tunable_context

SETTINGS = Tuning(tokens=16 * 24, checks=4, scales_lr=5e-3, norms_lr=5e-3, validation_tokens=64)
RTN3 = RTN(bits=[4, 3, 2], group_size=32)


def task_in(folder: Path, context: EvaluationContext, settings: Tuning = SETTINGS) -> TuningTask:
    folder.mkdir(exist_ok=True)
    profile = context.space.uniform(1)
    return TuningTask(settings, context, profile, folder / "tuned.safetensors", {"settings": "these"})


def ignore(metrics: Mapping[str, float], step: int) -> None:
    pass


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> EvaluationContext:
    made = tunable_context(RTN3, tmp_path_factory.mktemp("database"))
    return replace(made, splits=replace(made.splits, validation=made.splits.search))  # random text has nothing to learn


def test_only_an_excerpt_of_the_windows_is_used(context, tmp_path):
    def longer(windows: torch.Tensor, last: int) -> torch.Tensor:
        return torch.cat([windows, torch.full_like(windows, last)], dim=1)

    def result_of(name: str, last: int | None, excerpt: int | None) -> TuningResult:
        splits = context.splits
        if last is not None:
            splits = replace(splits, search=longer(splits.search, last), validation=longer(splits.validation, last))
        settings = Tuning(tokens=16 * 2, checks=1, validation_tokens=32, excerpt=excerpt)
        return tune(task_in(tmp_path / name, replace(context, splits=splits), settings), ignore)[1]

    short, cut, other = result_of("short", None, None), result_of("cut", 7, 16), result_of("other", 9, 16)
    assert short.checks == cut.checks == other.checks
    assert all(torch.equal(change, cut.changes[name]) for name, change in short.changes.items())
    assert result_of("all", 7, None).checks != short.checks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compressor", "dtype"),
    [(RTN3, torch.float32), (RTN3, torch.bfloat16), (GGUF(types=["Q5_0", "Q4_1", "Q4_0"]), torch.float32)],
    ids=["integers", "integers in bfloat16", "blocks"],
)
def test_tuning_lowers_the_kl_of_what_is_stored(compressor, dtype, tmp_path):
    context = tunable_context(compressor, tmp_path, dtype=dtype)
    context = replace(context, splits=replace(context.splits, validation=context.splits.search))
    seen: list[tuple[int, dict[str, float]]] = []
    task = task_in(tmp_path / "run", context)
    tuned, result = tune(task, lambda metrics, step: seen.append((step, dict(metrics))))
    assert tuned is not None
    assert result.kl_after < 0.95 * result.kl_before
    (before,) = context.evaluator.measure([task.profile], context.splits.validation)
    (after,) = tuned.evaluator.measure([task.profile], context.splits.validation)
    assert before.mean_kl == pytest.approx(result.kl_before)
    assert after.mean_kl == pytest.approx(result.kl_after)
    assert [step for step, metrics in seen if "loss" in metrics] == list(range(1, 25))
    assert [step for step, metrics in seen if "kl_validation" in metrics] == [0, 6, 12, 18, 24]


@pytest.mark.slow
def test_the_levels_keep_their_codes_types_and_bytes(context, tmp_path):
    task = task_in(tmp_path / "run", context)
    tuned, _ = tune(task, ignore)
    assert tuned is not None and tuned.evaluator.weights is not None and context.database is not None
    for unit in context.space.units:
        (layer,), (block,) = unit.layers, unit.blocks
        before, after = (
            levels.read(block, layer, 1) for levels in (context.database, tuned.evaluator.weights.database)
        )
        assert torch.equal(before.packed, after.packed) and torch.equal(before.zeros, after.zeros)
        assert after.scales.dtype == before.scales.dtype and after.size_bytes == before.size_bytes
        assert not torch.equal(before.scales, after.scales)
        untouched = context.database.read(block, layer, 0)
        assert torch.equal(tuned.evaluator.weights.database.read(block, layer, 0).scales, untouched.scales)


@pytest.mark.slow
def test_the_dense_model_stays_as_it_was(context, tmp_path):
    before = {name: tensor.clone() for name, tensor in context.lm.model.state_dict().items()}
    tuned, _ = tune(task_in(tmp_path / "run", context), ignore)
    assert tuned is not None
    for name, tensor in context.lm.model.state_dict().items():
        assert torch.equal(tensor, before[name])
    changed = {name for name, tensor in tuned.lm.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if "norm" in name}
    (dense,) = tuned.evaluator.measure([None], context.splits.validation)
    assert dense.mean_kl == 0


@pytest.mark.slow
def test_a_killed_run_ends_in_the_same_bytes(context, tmp_path, monkeypatch):
    whole = task_in(tmp_path / "whole", context)
    tune(whole, ignore)
    killed = task_in(tmp_path / "killed", context, replace(SETTINGS, save_minutes=1e-9))

    def kill_at(step: int):
        def report(metrics: Mapping[str, float], at: int) -> None:
            if at == step and "loss" in metrics:
                raise Killed

        return report

    for step in (1, 5, 6, 7, 20):
        with pytest.raises(Killed):
            tune(killed, kill_at(step))
        assert not killed.path.exists()
    steps: list[int] = []
    tune(killed, lambda metrics, step: steps.append(step))
    assert min(steps) == 20, "the step that was killed is the first that is repeated"
    assert killed.path.read_bytes() == whole.path.read_bytes()
    assert not killed.state_path.exists()
    monkeypatch.setattr(tuner, "_run", None)  # a finished task does not run again
    tune(killed, ignore)


@pytest.mark.parametrize("damage", ["cut", "changed", "other settings"])
def test_a_file_that_does_not_fit_is_made_again(damage, context, tmp_path):
    task = task_in(tmp_path / "run", context, replace(SETTINGS, tokens=32, checks=1))
    tune(task, ignore)
    content = task.path.read_bytes()
    if damage == "other settings":
        task = replace(task, identity={"settings": "others"})
    else:
        cut, changed = content[:-8], content[:-8] + bytes(8)
        task.path.write_bytes(cut if damage == "cut" else changed)
    steps: list[int] = []
    tune(task, lambda metrics, step: steps.append(step))
    assert steps == [0, 1, 2, 2]
    assert (task.path.read_bytes() == content) == (damage != "other settings")


def test_the_untuned_model_is_kept_if_nothing_is_gained(context, tmp_path, caplog):
    caplog.set_level("INFO")
    steps: list[int] = []
    task = task_in(tmp_path / "run", context, replace(SETTINGS, scales_lr=1.0, norms_lr=1.0, patience=2))
    tuned, result = tune(task, lambda metrics, step: steps.append(step))
    assert tuned is None and result.kl_after == result.kl_before
    assert max(steps) == 12, "two of four checks without a better one"
    assert "the untuned model is kept" in caplog.text
    assert load_file(task.path) == {}


@pytest.mark.slow
def test_a_rate_of_zero_leaves_a_kind_as_it_is(context, tmp_path):
    tune(task := task_in(tmp_path / "run", context, replace(SETTINGS, norms_lr=0)), ignore)
    assert load_file(task.path) and all(name.endswith(".scales") for name in load_file(task.path))
