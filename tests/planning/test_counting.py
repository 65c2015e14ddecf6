"""What is counted without a model is what the evaluator does with one."""

from dataclasses import replace
from random import Random

import pytest
import torch

from evopress.compressors.drop import Drop
from evopress.compressors.rtn import RTN
from evopress.database.cache import DecodedLevels
from evopress.database.store import Database
from evopress.evaluation.evaluator import Evaluator, EvaluatorSettings
from evopress.evaluation.switch_effects import switch_effects
from evopress.planning.counting import EvaluatorCount, parts_of
from evopress.planning.planned_run import PlannedRun, plan_run
from evopress.planning.work import Operation
from evopress.space.budget import Budget
from evopress.space.settings import SpaceSettings
from evopress.space.units import Profile, Space
from tests import plain
from tests.planning.test_estimate import job
from tests.tiny_models import tiny, token_windows

BITS = RTN(bits=(4, 3, 2), group_size=32)
BITS3, DROP = Budget(metric="bits", target=3), Budget(metric="drop", target=1 / 3)
JOINT = SpaceSettings(trade="any", drops="subblock")
SETTINGS = {
    "bits": dict(compress=BITS, budget=BITS3),
    "subblock": dict(compress=Drop(), budget=DROP),
    "block": dict(compress=Drop(granularity="block"), budget=DROP),
    "joint": dict(compress=BITS, budget=BITS3, space=JOINT),
}
SMALL = EvaluatorSettings(batch_tokens=50, states_gb=1e-4, cache_gb=1.5e-4)


def planned(folder, kind: str = "bits", evaluator: EvaluatorSettings | None = None) -> PlannedRun:
    settings = {**SETTINGS[kind], "evaluator": evaluator or EvaluatorSettings()}
    return plan_run(replace(job(folder, folder, **settings), model=tiny("llama")))


def evaluator_of(run: PlannedRun, folder) -> Evaluator:
    lm, weights = tiny("llama"), None
    if not isinstance(run.job.compress, Drop):
        database = plain.filled_database(lm, plain.layer_levels(lm, run.job.compress), folder)
        limit = int(run.job.evaluator.cache_gb * 1e9)
        weights = DecodedLevels(database, limit_bytes=limit, dtype=lm.dtype, device=torch.device("cpu"))
    return Evaluator(lm, run.space, weights, run.job.evaluator)


def profiles_of(space: Space, count: int, seed: int = 0) -> list[Profile]:
    """Random profiles with common beginnings, and one with everything at its last level."""
    rng = Random(seed)
    first = tuple(rng.randrange(len(unit.levels)) for unit in space.units)
    others = [(*first[: (at := rng.randrange(len(first)))], *(0 for _ in first[at:])) for _ in range(count)]
    return [space.normalized(profile) for profile in (first, *others, last_levels(space))]


def last_levels(space: Space) -> Profile:
    """Everything is dropped that may be."""
    return tuple(len(unit.levels) - 1 for unit in space.units)


@pytest.mark.parametrize("settings", [EvaluatorSettings(), SMALL], ids=["ample", "small"])
@pytest.mark.parametrize("kind", SETTINGS)
def test_blocks_run_as_often_as_counted_and_not_where_they_are_dropped(kind, settings, tmp_path):
    run = planned(tmp_path, kind, settings)
    count, evaluator = EvaluatorCount(run), evaluator_of(run, tmp_path)
    profiles = profiles_of(run.space, 5)
    count.measure(profiles, (5, 20))
    evaluator.measure(profiles, token_windows(5, 20))
    runs = {operation: times for operation, times in count.work.items() if operation.kind == "block"}
    of_dense = 100 * run.model.num_blocks
    assert sum(operation.tokens * times for operation, times in runs.items()) == of_dense + evaluator.block_tokens
    passes = evaluator.passes(profiles) + 1
    assert count.token_equivalents == pytest.approx(100 * passes)
    if kind != "bits":
        assert count.num_block_runs([last_levels(run.space)]) == 0


def test_the_head_runs_for_the_teacher_and_for_every_model_that_is_compared(tmp_path):
    run = planned(tmp_path)
    count = EvaluatorCount(run)
    profiles = [None, run.space.uniform(0), run.space.uniform(1), run.space.uniform(1)]
    count.measure(profiles, (4, 32))
    assert count.work[Operation("head", 1, 64)] == 2 * (1 + 3)


@pytest.mark.parametrize("kind", ["bits", "joint"])
@pytest.mark.parametrize(("cache_gb", "tolerance"), [(1.0, 0), (6e-4, 0.1)], ids=["all levels fit", "some fit"])
def test_levels_are_read_as_often_as_counted(cache_gb, tolerance, kind, tmp_path, monkeypatch):
    run = planned(tmp_path, kind, EvaluatorSettings(cache_gb=cache_gb))
    count, evaluator = EvaluatorCount(run), evaluator_of(run, tmp_path)
    read, read_bytes = Database.read, []

    def counted(database, *key):
        weight = read(database, *key)
        read_bytes.append(weight.size_bytes)
        return weight

    monkeypatch.setattr(Database, "read", counted)
    for seed in range(3):
        profiles = profiles_of(run.space, 4, seed)
        count.measure(profiles, (2, 20))
        evaluator.measure(profiles, token_windows(2, 20, seed))
        assert count.work[Operation("decode")] == pytest.approx(sum(read_bytes), rel=tolerance)
        count.table(profiles[0], (2, 20), draws=1)
        switch_effects(evaluator.compressible, profiles[0], parts=[token_windows(2, 20)], draws=1, rng=Random(0))
        assert count.work[Operation("decode")] == pytest.approx(sum(read_bytes), rel=tolerance)
    assert evaluator.weights.kept_bytes <= count.decoded.most_bytes <= cache_gb * 1e9
    if cache_gb < 1:
        assert sum(read_bytes) > 2 * run.level_bytes


def test_a_stage_keeps_the_levels_of_the_one_before(tmp_path):
    run = planned(tmp_path)
    search = EvaluatorCount(run)
    search.measure([run.space.uniform(0)], (2, 20))
    evaluation = EvaluatorCount(run, before=search)
    evaluation.measure([run.space.uniform(0)], (2, 20))
    assert evaluation.work[Operation("decode")] == 0
    evaluation.measure([run.space.uniform(1)], (2, 20))
    assert evaluation.work[Operation("decode")] == sum(unit.levels[1].size_bytes for unit in run.space.units)


def test_states_of_teacher_and_students_are_those_that_are_held(tmp_path):
    run = planned(tmp_path, "subblock", replace(SMALL, states_gb=2e-4))
    count, evaluator = EvaluatorCount(run), evaluator_of(run, tmp_path)
    profiles = profiles_of(run.space, 5)
    for seed in range(3):
        count.measure(profiles, (5, 20))
        evaluator.measure(profiles, token_windows(5, 20, seed))
    assert count.teacher_tokens == 3 * 5 * 20
    limit, teacher_bytes = 2e-4 * 1e9, count.teacher_tokens * run.state_bytes
    assert evaluator._teacher_cache.size_bytes <= min(limit / 2, teacher_bytes)
    assert evaluator.state_memory.limit_bytes >= max(limit / 2, limit - teacher_bytes / 3)
    assert 0 < count.student_bytes <= limit
    assert count.work[Operation("states")] > 0


@pytest.mark.parametrize(("windows", "parts"), [(5, [2, 2, 1]), (4, [2, 2]), (1, [1]), (0, [])])
def test_windows_are_divided_into_equal_parts_and_a_rest(windows, parts):
    assert parts_of(windows, 2) == parts
