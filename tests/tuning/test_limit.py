"""A tuning within a limit costs no more, is stopped where its time is over, and ends in the same bytes after a kill."""

from dataclasses import replace
from itertools import count

import pytest

from evopress.compressors.rtn import RTN
from evopress.tuning import tuner
from evopress.tuning.limit import cost_of, token_equivalents_per_second, within
from evopress.tuning.resolver import resolve
from evopress.tuning.settings import Tuning
from evopress.tuning.state import read_state
from evopress.tuning.tuner import tune
from tests.databases import Killed
from tests.tuning.models import tunable_context
from tests.tuning.test_tuner import SETTINGS, ignore, task_in

SHAPES = {"calibration": (64, 512), "validation": (32, 512)}
DEFAULT = Tuning(tokens=24576)
ROUNDING = Tuning(tokens=24576, resolve="signround")


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    made = tunable_context(RTN(bits=[4, 3, 2], group_size=32), tmp_path_factory.mktemp("database"))
    return replace(made, splits=replace(made.splits, validation=made.splits.search))


@pytest.mark.parametrize("settings", [DEFAULT, ROUNDING, replace(DEFAULT, windows=3, checks=3)])
@pytest.mark.parametrize("limit", [0, 500, 5_000, 20_000, 60_000, 150_000, 250_000, 10**9])
def test_a_tuning_costs_at_most_its_limit_and_most_of_it(settings, limit):
    cost = cost_of(within(settings, limit, **SHAPES), **SHAPES)
    whole = cost_of(settings, **SHAPES)
    assert cost <= limit
    if limit >= 20_000:
        assert cost >= 0.7 * min(limit, whole)
    if limit >= whole:
        assert within(settings, limit, **SHAPES) == settings


def test_rounding_is_left_out_if_it_alone_costs_too_much():
    assert within(ROUNDING, 5_000, **SHAPES).resolve == "none"
    assert within(ROUNDING, 300_000, **SHAPES).resolve == "signround"
    assert within(DEFAULT, 100, **SHAPES).does_nothing


@pytest.mark.slow
def test_the_speed_is_measured_without_a_change(context, tmp_path):
    task = task_in(tmp_path / "run", context)
    assert token_equivalents_per_second(task) > 0
    tune(task, ignore)
    again = task_in(tmp_path / "again", context)
    tune(again, ignore)
    assert task.path.read_bytes() == again.path.read_bytes()


@pytest.mark.parametrize("steps", [0, 1, 7, 12])
def test_a_tuning_stops_where_its_time_is_over_and_keeps_the_best(steps, context, tmp_path):
    calls = count()
    task = replace(task_in(tmp_path / "run", context), is_over=lambda: next(calls) == steps)
    seen = []
    tuned, result = tune(task, lambda metrics, step: seen.append(step))
    assert result.checks[-1][0] == steps == max(seen), "the last model is measured too"
    assert (tuned is None) == (steps == 0)
    assert result.kl_after == min(kl for _, kl in result.checks)


def test_a_tuning_that_is_killed_after_its_stop_ends_in_the_same_bytes(context, tmp_path, monkeypatch):
    calls, again = count(), count()
    whole = replace(task_in(tmp_path / "whole", context), is_over=lambda: next(calls) == 7)
    tune(whole, ignore)
    killed = replace(task_in(tmp_path / "killed", context), is_over=lambda: next(again) == 7)
    check = tuner._kl
    monkeypatch.setattr(tuner, "_kl", lambda task, model: _kill() if next(checks) == 2 else check(task, model))
    checks = count()
    with pytest.raises(Killed):
        tune(killed, ignore)  # in the check of the last model
    state = read_state(killed.state_path, killed.identity)
    assert state is not None and state.is_stopped and state.step == 7
    tune(replace(killed, is_over=lambda: False), ignore)
    assert killed.path.read_bytes() == whole.path.read_bytes()


def _kill():
    raise Killed


def test_learnt_rounding_stops_between_blocks_and_later_runs_find_its_end(context, tmp_path):
    calls = count()
    settings = replace(SETTINGS, resolve="signround", resolve_steps=3, resolve_windows=1)
    task = replace(task_in(tmp_path / "run", context, settings), is_over=lambda: next(calls) == 1)
    _, resolution = resolve(task)
    assert len(resolution.losses) == 1
    content = task.path.read_bytes()
    assert resolve(replace(task, is_over=lambda: False))[1] == resolution
    assert task.path.read_bytes() == content
