"""Whole runs with a budget of latency: the table is measured on this machine, or given."""

from dataclasses import replace

import pytest

from evopress.compressors.drop import Drop
from evopress.compressors.gptq import GPTQ
from evopress.models.loading import load_structure
from evopress.pipeline import run_job
from evopress.planning.latency_table import ensure_table, measure_table
from evopress.planning.planned_run import plan_run
from evopress.report.read_run import read_run
from evopress.report.run_page import headline
from evopress.runtime.json_files import read_json
from evopress.space.byte_sizes import parse_bytes
from evopress.space.latency import LatencyBudget, read_table, table_json
from evopress.space.memory import MemoryBudget
from evopress.space.seconds import parse_seconds
from evopress.space.settings import SpaceSettings
from tests.jobs import small_job

JOINT = SpaceSettings(trade="any", drops="subblock")
GPTQ_LEVELS = GPTQ(bits=[2, 3, 4], group_size=32)


@pytest.fixture
def jobs(tmp_path, model_folders, monkeypatch):
    """A function that makes jobs with a latency budget. Operations are timed once."""
    monkeypatch.setattr("evopress.planning.speed.MIN_SECONDS", 0.0)
    monkeypatch.setattr("evopress.planning.speed.MIN_CALLS", 1)

    def make(target="1s", **changes):
        budget = LatencyBudget(target=target, table=str(tmp_path / "tables/table.json"), length=64)
        return small_job(tmp_path / "run", tmp_path, model_folders("llama"), **{"budget": budget, **changes})

    return make


def write_table(job) -> None:
    """A table in which every bit of a layer takes 10 us."""
    structure = load_structure(job.model, job.outputs / "cache")
    table = measure_table(job, structure, batch=1, length=64)
    times = {"dense": 16e-5, "4bit": 4e-5, "3bit": 3e-5, "2bit": 2e-5}
    table = replace(table, layers=dict.fromkeys(table.layers, times), attention=1e-5, rest=1e-4)
    (job.outputs / "tables").mkdir()
    (job.outputs / "tables/table.json").write_text(table_json(table))


@pytest.mark.parametrize("compress", [GPTQ_LEVELS, Drop()], ids=["gptq", "drop"])
def test_a_measured_table_has_every_layer_that_a_search_may_choose(compress, jobs):
    job = jobs(compress=compress)
    ensure_table(job, job.budget)
    space = plan_run(job).space  # raises if a shape or a level is missing
    assert all(unit.levels[0].cost > 0 for unit in space.units)
    table = read_table(job.budget.table)
    assert table.attention > 0 and table.rest > 0


def test_a_table_that_exists_is_not_measured_again(jobs):
    job = jobs()
    ensure_table(job, job.budget)
    first = read_table(job.budget.table)
    ensure_table(job, job.budget)
    assert read_table(job.budget.table) == first


@pytest.mark.slow
@pytest.mark.parametrize("space", [SpaceSettings(), JOINT], ids=["levels", "joint"])
def test_a_run_holds_the_target_and_says_what_a_step_takes(space, jobs):
    job = jobs(space=space)
    write_table(job)
    job = replace(job, budget=replace(job.budget, target="700us"))
    profile = run_job(job)
    results = read_json(job.folder / "results.json")
    planned = plan_run(job).space
    assert results["budget"]["achieved"] == job.budget.achieved(planned, profile) <= 700e-6
    if space is not JOINT:
        assert results["budget"]["achieved"] > 690e-6
    facts = {name: value for name, value, _ in headline(read_run(job.folder))}
    assert facts["Budget"] == f"{1000 * results['budget']['achieved']:.4g} ms"


@pytest.mark.slow
@pytest.mark.parametrize(("memory", "time"), [("175KB", "1s"), ("1MB", "700us"), ("190KB", "800us")])
def test_two_budgets_hold_at_once(memory, time, jobs):
    job = jobs(space=JOINT)
    write_table(job)
    budget = MemoryBudget(target=memory, context=64, reserve=0, also=replace(job.budget, target=time))
    job = replace(job, budget=budget)
    profile = run_job(job)
    space, results = plan_run(job).space, read_json(job.folder / "results.json")
    assert budget.achieved(space, profile) == results["budget"]["achieved"] <= parse_bytes(memory)
    assert results["budget"]["also"]["achieved"] <= parse_seconds(time)
    facts = {name: value for name, value, _ in headline(read_run(job.folder))}
    assert facts["Time per step"] == f"{1000 * results['budget']['also']['achieved']:.4g} ms"


def test_a_second_budget_is_measured_by_the_plan_and_counts_in_the_identity(jobs):
    job = jobs()
    write_table(job)
    one, other = (MemoryBudget(target="1MB", also=replace(job.budget, target=time)) for time in ("1s", "2s"))
    assert one.identity != other.identity != MemoryBudget(target="1MB").identity
    assert str(one) == "1MB of memory and 1s per step"


def test_a_second_budget_out_of_reach_is_named(jobs):
    job = jobs()
    write_table(job)
    budget = MemoryBudget(target="1MB", context=64, reserve=0, also=replace(job.budget, target="1us"))
    with pytest.raises(ValueError, match="the budget of 1us per step leaves nothing to the layers"):
        run_job(replace(job, budget=budget))


def test_without_a_table_the_error_says_how_to_measure_one(jobs):
    with pytest.raises(ValueError, match=r"run with stages=\[plan\] to measure it"):
        run_job(jobs())
