"""Operations are timed in the shapes of the model on a sample of it, and their seconds add up to those of a stage."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from evopress.compressors.drop import Drop
from evopress.compressors.gguf import GGUF
from evopress.compressors.rtn import RTN
from evopress.compressors.sparsegpt import SparseGPT
from evopress.evaluation.evaluator import EvaluatorSettings
from evopress.models.source import ModelSource
from evopress.planning import speed
from evopress.planning.counting import EvaluatorCount
from evopress.planning.estimate import StageEstimate
from evopress.planning.machine import load_per_processor
from evopress.planning.planned_run import PlannedRun, plan_run
from evopress.planning.render import busy_line, seconds_of, total_line
from evopress.planning.sample import Timeable, random_model, sample_of
from evopress.planning.speed import measure_seconds, smaller
from evopress.planning.stages import estimate_resources
from evopress.planning.work import Operation, Work, cost_of
from evopress.runtime import distributed
from evopress.space.budget import Budget
from tests.planning.test_estimate import GUIDED, job
from tests.tiny_models import ALL_FAMILIES, NUM_BLOCKS, NUM_EXPERTS, config, save_tiny, tiny

LARGE = ModelSource(name="large", path="", dtype="float32", device="cpu")


def planned(folder, family: str = "llama", **changes) -> PlannedRun:
    config(family).save_pretrained(folder)
    return plan_run(job(folder, folder, **changes))


def operations_of(run: PlannedRun) -> set[Operation]:
    return {operation for stage in estimate_resources(run).stages for operation in stage.work}


@pytest.fixture
def fast(monkeypatch) -> None:
    """Every operation is repeated once."""
    monkeypatch.setattr(speed, "MIN_SECONDS", 0.0)
    ticks = iter(range(10**6))
    monkeypatch.setattr(speed, "perf_counter", lambda: next(ticks) / 10)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_blocks_of_every_family_run_with_random_weights_and_the_structure_stays_without(family, tmp_path):
    save_tiny(family, tmp_path)
    run = plan_run(job(tmp_path, tmp_path))
    lm = random_model(run.model, dtype=torch.bfloat16, device=torch.device("cpu"))
    assert lm.num_blocks == NUM_BLOCKS and lm.dtype == torch.bfloat16
    assert len(set(lm.blocks)) == len(set(run.model.alike))
    for block, planned_block in zip(lm.blocks, run.model.blocks, strict=True):
        assert [(n, p.shape) for n, p in block.named_parameters()] == [
            (n, p.shape) for n, p in planned_block.named_parameters()
        ]
    assert all(parameter.is_meta for parameter in run.model.model.parameters())
    output = hidden = torch.randn(2, 20, lm.hidden_size).bfloat16()
    for block, kwargs in enumerate(lm.embed(torch.zeros(1, 20, dtype=torch.long))[1]):
        output = lm.run_block(block, output, kwargs)
    assert output.shape == hidden.shape and bool(output.isfinite().all())
    assert lm.logits(lm.final_norm(output)).shape[-1] == run.model.vocab_size


def test_a_model_in_memory_is_its_own_sample(tmp_path):
    run = plan_run(replace(job(tmp_path, tmp_path), model=tiny("llama")))
    assert sample_of(run).lm is tiny("llama")


@pytest.mark.parametrize(
    "changes",
    [
        dict(search=GUIDED),
        dict(compress=SparseGPT(base=0.5, num_levels=2), budget=Budget(metric="sparsity", target=0.5), search=GUIDED),
        dict(compress=GGUF(types=["Q4_0", "Q8_0"]), budget=Budget(metric="bits", target=6), search=GUIDED),
        dict(compress=RTN(bits=(2, 4), group_size=32)),
        dict(compress=Drop(), budget=Budget(metric="drop", target=1 / 3), search=GUIDED),
        dict(evaluator=EvaluatorSettings(states_gb=1e-6)),
    ],
    ids=["gptq", "sparsegpt", "gguf", "rtn", "drop", "states in a file"],
)
def test_every_operation_of_a_run_can_be_timed_and_nothing_is_left_behind(changes, tmp_path, fast):
    run = planned(tmp_path / "model", **changes)
    operations = operations_of(run)
    files = sorted(tmp_path.rglob("*"))
    seconds = measure_seconds(run, operations)
    assert seconds.keys() == operations and all(value > 0 for value in seconds.values())
    assert sorted(tmp_path.rglob("*")) == files
    kinds = {operation.kind for operation in operations}
    assert ("states" in kinds) == (run.job.evaluator.states_gb < 1e-3)
    assert ("decode" in kinds) == ("solve" in kinds) == (not isinstance(run.job.compress, Drop))
    assert ("calibrate" in kinds) == run.needs_hessians


def test_blocks_that_differ_are_counted_and_timed_one_by_one(tmp_path, fast):
    run = planned(tmp_path / "model", "qwen3_next", search=GUIDED)
    count = EvaluatorCount(run)
    count.measure([None], (2, 20))
    model = run.model
    costs = {op.block: cost_of(op, run).in_model for op in count.work if op.kind == "block"}
    for block in range(NUM_BLOCKS):
        sizes = {local: model.linear(block, local).weight.numel() for local in model.layers(block)}
        active = sum(size * (2 / NUM_EXPERTS if ".experts." in local else 1) for local, size in sizes.items())
        assert costs[block] == pytest.approx(2 * 40 * active)
    assert costs[1] != costs[2]
    operations = operations_of(run)
    assert {op.block for op in operations if op.kind == "calibrate"} == {0, 1, 2}
    solved = sum(w["solve"] for w in [by_kind(stage) for stage in estimate_resources(run).stages])
    assert solved == sum(len(model.layer_groups(block)) for block in range(NUM_BLOCKS))
    assert measure_seconds(run, operations).keys() == operations


def by_kind(stage: StageEstimate) -> Counter[str]:
    counts: Counter[str] = Counter()
    for operation, times in stage.work.items():
        counts[operation.kind] += int(times)
    return counts


def test_what_would_take_long_is_timed_in_a_smaller_shape_and_scaled_by_its_cost(tmp_path, fast, monkeypatch):
    run = planned(tmp_path)
    operations = [
        Operation("block", 8, 32),
        Operation("head", 1, 64),
        Operation("solve", rows=(64, 32, 32), cols=512),
        Operation("table", 4, 16, draws=1),
        Operation("calibrate", 8, 32),
    ]
    monkeypatch.setattr(speed, "MIN_TOKENS", 1)
    monkeypatch.setattr(speed, "MIN_CALIBRATION_TOKENS", 1)
    for operation in operations:
        monkeypatch.setitem(speed.MAX_OPERATIONS, "cpu", 1e12)
        assert smaller(operation, run) == operation
        (whole,) = measure_seconds(run, [operation]).values()
        monkeypatch.setitem(speed.MAX_OPERATIONS, "cpu", 1e6)
        part = smaller(operation, run)
        ratio = sum(vars(cost_of(operation, run)).values()) / sum(vars(cost_of(part, run)).values())
        assert ratio > 1.5 and part.kind == operation.kind
        (scaled,) = measure_seconds(run, [operation]).values()
        assert scaled == pytest.approx(ratio * whole)  # every call takes one tick of the clock


def test_tokens_of_an_operation_are_limited_by_windows_first_and_never_to_a_few(tmp_path, monkeypatch):
    run = planned(tmp_path)
    per_token = cost_of(Operation("block", 1, 1), run).in_model
    monkeypatch.setitem(speed.MAX_OPERATIONS, "cpu", 70 * per_token)
    assert smaller(Operation("block", 8, 32), run) == Operation("block", 2, 32)
    assert smaller(Operation("block", 1, 100), run) == Operation("block", 1, 70)
    monkeypatch.setitem(speed.MAX_OPERATIONS, "cpu", 1)
    assert smaller(Operation("block", 8, 32), run) == Operation("block", 2, 32)
    assert smaller(Operation("block", 1, 20), run) == Operation("block", 1, 20)
    assert smaller(Operation("calibrate", 8, 1000), run) == Operation("calibrate", 1, 256)


def test_operations_that_are_timed_in_the_same_shape_are_timed_once(tmp_path, monkeypatch):
    run, timed = planned(tmp_path), []
    monkeypatch.setitem(speed.MAX_OPERATIONS, "cpu", 1)
    monkeypatch.setattr(speed, "fastest_seconds", lambda timeable, device: timed.append(timeable) or 1.0)
    seconds = measure_seconds(run, [Operation("block", 1, 100), Operation("block", 1, 200)])
    assert len(timed) == 1
    assert seconds[Operation("block", 1, 200)] == pytest.approx(2 * seconds[Operation("block", 1, 100)])


@pytest.mark.parametrize(
    ("durations", "fastest"),
    [
        ((0.1, 0.4, 0.2, 0.6), 0.2),  # the first call is a warm-up
        ((0.01, 0.1, 0.02, 0.05, 0.05, 0.1), 0.02),  # more calls until they take long enough
        ((3.0,), 3.0),  # it takes long
    ],
)
def test_the_fastest_call_after_a_warm_up_counts(durations, fastest, monkeypatch):
    remaining = iter(durations)
    monkeypatch.setattr(speed, "_seconds", lambda timeable, device: next(remaining))
    assert speed.fastest_seconds(Timeable(lambda: None, 2), torch.device("cpu")) == fastest / 2
    assert next(remaining, None) is None


def test_other_programs_are_mentioned_where_they_use_the_processors(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    for load, lines in ((0.4, 0), (3.0, 1)):
        monkeypatch.setattr("os.getloadavg", lambda load=load: (load, 0.0, 0.0))
        assert len(busy_line(load_per_processor())) == lines
    assert "0.8 per processor" in busy_line(load_per_processor())[0]


def test_processes_share_the_work_but_not_the_reading_of_levels(monkeypatch):
    work = Work()
    work[Operation("block", 1, 8)], work[Operation("decode")] = 6, 100
    stage = StageEstimate("search", 0, work, ())
    seconds = {Operation("block", 1, 8): 2.0, Operation("decode"): 0.5}
    assert seconds_of(stage, seconds) == 12 + 50
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    assert seconds_of(stage, seconds) == 3 + 50


@pytest.mark.parametrize(
    ("seconds", "stages", "line"),
    [
        (
            (170, 190, 61),
            ("plan", "database", "search", "evaluate"),
            "7 min in all on this machine: database 3, search 3",
        ),
        ((170, 190, 61), ("plan", "database", "search"), "6 min in all on this machine: database 3, search 3;"),
        ((170, 190, 61), ("plan",), "7 min in all on this machine: database 3, search 3, evaluation 1;"),
        ((9000, 60, 360), ("plan",), "2.6 hours in all on this machine: database 2.5, search 0, evaluation 0.1;"),
        ((2, 0, 40), ("plan",), "0.7 min in all on this machine: database 0, search 0, evaluation 0.7;"),
    ],
)
def test_the_total_is_one_line_with_the_stages_that_run(seconds, stages, line, tmp_path):
    of_stage = dict(zip(("database", "search", "evaluate"), seconds, strict=True))
    assert line in total_line(of_stage, replace(job(tmp_path, tmp_path), stages=stages))
