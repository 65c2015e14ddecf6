"""Learnt rounding of a whole model: losses fall, the better weights stay, and a killed run ends in the same bytes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evopress.compressors.gguf import GGUF
from evopress.compressors.rtn import RTN
from evopress.evaluation.context import EvaluationContext
from evopress.tuning import resolver
from evopress.tuning.block_rounding import learn_block, share_of_step
from evopress.tuning.calibration_pair import calibration_pair
from evopress.tuning.resolver import resolve
from evopress.tuning.settings import Tuning
from evopress.tuning.task import TuningTask
from evopress.weights.integer import QuantizedWeight
from tests.databases import Killed
from tests.tiny_models import token_windows
from tests.tuning.models import tunable_context

SETTINGS = Tuning(resolve="signround", resolve_steps=30, resolve_windows=8, validation_tokens=64, save_minutes=1e-9)
RTN3 = RTN(bits=[4, 3, 2], group_size=32)


def context_of(compressor, root: Path, **changes) -> EvaluationContext:
    context = tunable_context(compressor, root, **changes)
    return replace(context, splits=replace(context.splits, calibration=token_windows(32, 24, 7)))


def task_in(folder: Path, context: EvaluationContext, settings: Tuning = SETTINGS, level: int = 1) -> TuningTask:
    folder.mkdir(exist_ok=True)
    profile = context.space.uniform(level)
    return TuningTask(settings, context, profile, folder / "tuned.rounding.safetensors", {"settings": "these"})


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> EvaluationContext:
    return context_of(RTN3, tmp_path_factory.mktemp("database"))


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
def test_losses_and_kl_fall(dtype, tmp_path):
    context = context_of(RTN3, tmp_path, dtype=dtype)
    task = task_in(tmp_path / "run", context, level=2)
    resolved, resolution = resolve(task)
    assert all(after < 0.98 * before for before, after in resolution.losses) and len(resolution.losses) == 3
    (before,) = context.evaluator.measure([task.profile], context.splits.validation)
    (after,) = resolved.evaluator.measure([task.profile], context.splits.validation)
    assert (before.mean_kl, after.mean_kl) == pytest.approx((resolution.kl_before, resolution.kl_after))
    assert after.mean_kl < 0.95 * before.mean_kl
    assert resolved.identity != context.identity


def test_only_an_excerpt_of_the_windows_is_used(context, tmp_path):
    states = calibration_pair(task_in(tmp_path / "run", context, replace(SETTINGS, excerpt=5)))
    whole = calibration_pair(task_in(tmp_path / "run", context))
    assert states.dense.shape[1] == 5 < whole.dense.shape[1]
    assert torch.equal(states.dense, whole.dense[:, :5])


@pytest.mark.slow
def test_only_the_levels_of_the_profile_change(context, tmp_path):
    resolved, _ = resolve(task_in(tmp_path / "run", context))
    assert resolved.evaluator.weights is not None and context.database is not None
    databases = (context.database, resolved.evaluator.weights.database)
    for unit in context.space.units:
        (layer,), (block,) = unit.layers, unit.blocks
        before, after = (levels.read(block, layer, 1) for levels in databases)
        assert isinstance(before, QuantizedWeight) and isinstance(after, QuantizedWeight)
        assert not torch.equal(before.packed, after.packed)
        assert after.spec() == before.spec() and after.size_bytes == before.size_bytes
        for level in (0, 2):
            stored = context.database.read(block, layer, level).dense()
            assert torch.equal(databases[1].read(block, layer, level).dense(), stored)


def test_a_block_keeps_its_weights_where_no_loss_falls(context, tmp_path, monkeypatch):
    task = task_in(tmp_path / "run", context)
    states = calibration_pair(task)
    states.advance_dense(0)
    block, start = states.block_task(0), states.stored_weights(0)
    monkeypatch.setattr(type(block), "gradients", lambda *_: {n: torch.randn(w.shape) for n, w in start.items()})
    learnt = learn_block(block, start, replace(SETTINGS, resolve_range_distance=1.0))
    assert learnt.loss_after == learnt.loss_before
    assert all(learnt.weights[name] is weight for name, weight in start.items())


def test_held_out_windows_are_not_trained_on(context, tmp_path):
    states = calibration_pair(task_in(tmp_path / "run", context))
    states.advance_dense(0)
    block, start = states.block_task(0), states.stored_weights(0)
    weights = {name: weight.dense() for name, weight in start.items()}
    windows = list(range(block.num_training))
    loss, gradients = block.held_out_loss(weights), block.gradients(windows, weights)
    states.dense[-4:] *= 3
    assert block.held_out_loss(weights) != loss
    assert all(torch.equal(g, gradients[name]) for name, g in block.gradients(windows, weights).items())
    assert block.num_training == 28


@pytest.mark.slow
def test_a_model_whose_kl_does_not_fall_stays(context, tmp_path, caplog):
    caplog.set_level("INFO")
    dense = context.evaluator.compressible.weights
    assert dense is not None
    task = task_in(tmp_path / "run", context)
    resolve(task)
    worse = replace(task, profile=context.space.uniform(0), path=tmp_path / "run" / "another.safetensors")
    worse.path.write_bytes(task.path.read_bytes())  # weights of 3 bits in the place of those of 4
    kept, resolution = resolve(worse)
    assert kept is context and not resolution.is_kept
    assert "the rounding stays as it was" in caplog.text


def test_other_kinds_of_weight_stay(tmp_path):
    context = context_of(GGUF(types=["Q5_0", "Q4_0"]), tmp_path)
    kept, resolution = resolve(task_in(tmp_path / "run", context))
    assert kept is context
    assert all(before == after for before, after in resolution.losses)


@pytest.mark.slow
def test_blocks_run_without_their_dropped_parts(tmp_path):
    context = context_of(RTN3, tmp_path, drops="subblock")
    units = context.space.units
    profile = tuple(int(unit.blocks == (1,)) if not unit.layers else 1 for unit in units)
    task = replace(task_in(tmp_path / "run", context), profile=profile)
    _, resolution = resolve(task)
    assert resolution.losses[1][0] == resolution.losses[1][1], "nothing is left of block 1"
    assert resolution.losses[2][1] < resolution.losses[2][0]


@pytest.mark.slow
def test_a_killed_run_ends_in_the_same_bytes(context, tmp_path, monkeypatch):
    whole = task_in(tmp_path / "whole", context)
    resolve(whole)
    killed = task_in(tmp_path / "killed", context)
    learn, learnt = resolver.learn_block, []

    def killed_at(block: int):
        def learn_or_die(task, *others):
            if task.block == block:
                raise Killed
            learnt.append(task.block)
            return learn(task, *others)

        return learn_or_die

    for block in (1, 2):
        monkeypatch.setattr(resolver, "learn_block", killed_at(block))
        with pytest.raises(Killed):
            resolve(killed)
        assert not killed.path.exists()
    monkeypatch.setattr(resolver, "learn_block", killed_at(-1))
    resolve(killed)
    assert learnt == [0, 1, 2], "no block is learnt twice"
    assert killed.path.read_bytes() == whole.path.read_bytes()
    assert not killed.state_path.exists()
    monkeypatch.setattr(resolver, "learn_block", None)  # a finished task does not run again
    resolve(killed)


def test_the_steps_use_every_window_twice(context, tmp_path):
    task = task_in(tmp_path / "run", context, replace(SETTINGS, resolve_steps=3, resolve_windows=2))
    assert len(calibration_pair(task).dense) == 3 + 8 < len(context.splits.calibration)


def test_a_step_moves_offsets_by_a_limited_distance_on_average():
    assert Tuning(resolve_steps=20).rounding_distance == pytest.approx(20 * 0.005)
    assert Tuning(resolve_steps=200).rounding_distance == 0.2


def test_fewer_tokens_follow_learnt_rounding():
    settings = Tuning(tokens=4096, rounded_tokens=1024, windows=2)
    assert settings.num_steps(256) == 8
    assert replace(settings, resolve="signround").num_steps(256) == 2
    assert replace(settings, resolve="signround", tokens=512).num_steps(256) == 1


@pytest.mark.parametrize("steps", [1, 7, 50])
def test_rates_fall_and_add_up_to_the_distance(steps):
    shares = [share_of_step(step, steps=steps) for step in range(1, steps + 1)]
    assert sum(shares) == pytest.approx(1)
    assert shares == sorted(shares, reverse=True) and shares[-1] > 0
