"""The estimates made from the configuration agree with what a run then uses."""

import csv
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from evopress.compressors.drop import Drop
from evopress.compressors.gptq import GPTQ
from evopress.compressors.sparsegpt import SparseGPT
from evopress.data.settings import Data
from evopress.evaluation.eval_settings import Eval
from evopress.evaluation.evaluator import EvaluatorSettings
from evopress.models.loading import load_model, load_structure
from evopress.models.source import ModelSource
from evopress.pipeline import Job, run_job
from evopress.planning import speed
from evopress.planning.estimate import MemoryItem, ResourceEstimate, StageEstimate
from evopress.planning.planned_run import PlannedRun, plan_run
from evopress.planning.render import NO_REMEDY, TOO_LARGE_TO_TIME, advice, plan_text
from evopress.planning.sample import sample_bytes
from evopress.planning.stages import estimate_resources
from evopress.runtime.json_files import read_json
from evopress.runtime.tracking import Tracker
from evopress.search.baselines.uniform import Uniform
from evopress.search.evolution import Evolution
from evopress.search.guided import Guided
from evopress.search.refinement import Refinement
from evopress.search.selection import Stage
from evopress.space.budget import Budget
from evopress.space.settings import SpaceSettings
from evopress.tuning.settings import Tuning
from tests.tiny_models import FAMILIES, config, save_tiny, tokenizer

COMPRESSORS = [
    (GPTQ(bits=[2, 3, 4], group_size=32), Budget(metric="bits", target=3)),
    (SparseGPT(base=0.5, num_levels=2), Budget(metric="sparsity", target=0.5)),
]
STAGES = [Stage(survivors=2, tokens=32), Stage(survivors=1, tokens=64)]
GUIDED = Guided(rounds=1, table_tokens=64, dampings=[1, 2], line_tokens=32, generations=2, offspring=3, stages=STAGES)
REFINEMENT = Refinement(table_tokens=64, share=0.5, tokens=32, line_tokens=64)


def job(folder, model, **changes) -> Job:
    settings = dict(
        model=ModelSource(name="tiny", path=str(model), dtype="float32", device="cpu", max_perplexity=1e6),
        data=Data(
            source="pydoc", window=32, calibration_tokens=256, search_tokens=256, validation_tokens=64, test_tokens=128
        ),
        compress=COMPRESSORS[0][0],
        space=SpaceSettings(),
        budget=COMPRESSORS[0][1],
        search=Uniform(),
        evaluator=EvaluatorSettings(),
        eval=Eval(),
        tracker=Tracker(),
        folder=folder / "run",
        outputs=folder,
    )
    return Job(**{**settings, **changes})


def estimate_of(settings: Job) -> ResourceEstimate:
    return estimate_resources(plan_run(settings))


def stage_of(settings: Job, name: str) -> StageEstimate:
    return next(stage for stage in estimate_of(settings).stages if stage.name == name)


def memory_of(settings: Job, stage: str) -> dict[str, int]:
    return {item.content: item.size_bytes for item in stage_of(settings, stage).memory}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_without_weights_has_the_shapes_of_the_real_one(family, tmp_path):
    save_tiny(family, tmp_path)
    source = ModelSource(name="tiny", path=str(tmp_path), dtype="float32", device="cpu")
    real, structure = load_model(source, tmp_path), load_structure(source, tmp_path)
    assert all(parameter.is_meta for parameter in structure.model.parameters())
    shapes = [{name: parameter.shape for name, parameter in lm.model.named_parameters()} for lm in (real, structure)]
    assert shapes[1] == shapes[0]
    assert estimate_of(job(tmp_path, tmp_path)).num_weights == sum(shape.numel() for shape in shapes[0].values())


def test_an_estimate_reads_no_weights(tmp_path):
    config("llama").save_pretrained(tmp_path)
    assert estimate_of(job(tmp_path, tmp_path)).num_units == 21


@pytest.mark.parametrize(("compress", "budget"), COMPRESSORS, ids=["gptq", "sparsegpt"])
def test_the_database_is_as_large_as_estimated(compress, budget, tmp_path):
    save_tiny("llama", tmp_path / "model")
    settings = job(tmp_path, tmp_path / "model", compress=compress, budget=budget, stages=("database",))
    run_job(settings)
    blocks = [load_file(path) for path in tmp_path.glob("databases/tiny/*/block-*.safetensors")]
    assert estimate_of(settings).database_bytes == sum(tensor.nbytes for block in blocks for tensor in block.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "search",
    [
        Evolution(generations=3, offspring=4, stages=STAGES, initial_candidates=4, initial_tokens=32),
        GUIDED,
        replace(GUIDED, refinements=2, refinement=REFINEMENT, generations=0),
    ],
    ids=["evolution", "guided", "refinements"],
)
def test_the_search_takes_the_estimated_tokens(search, tmp_path):
    save_tiny("llama", tmp_path / "model")
    settings = job(tmp_path, tmp_path / "model", search=search)
    estimated = stage_of(settings, "search")
    logged = []

    class Recorder(Tracker):
        def log(self, metrics, *, step):
            logged.extend(value for name, value in metrics.items() if name == "search/token_equivalents")

    run_job(replace(settings, tracker=Recorder(), stages=("database", "search")))
    assert estimated.tokens == pytest.approx(logged[-1], rel=0.2)  # random fitness leads to other mutants


@pytest.mark.slow
@pytest.mark.parametrize(("compare_uniform", "excerpt"), [(False, None), (True, 16)])
def test_tuning_takes_the_estimated_tokens(compare_uniform, excerpt, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "evopress.evaluate_stage.write_report", lambda folder: folder / "results.json"
    )  # it takes longest
    save_tiny("llama", tmp_path / "model")
    tune = Tuning(tokens=128, checks=2, patience=2, compare_uniform=compare_uniform, excerpt=excerpt)
    settings = job(tmp_path, tmp_path / "model", tune=tune)
    run_job(settings)
    tuning = read_json(tmp_path / "run" / "results.json")["tuning"]
    assert len(tuning) == 1 + compare_uniform
    counted = sum(tuned["token_equivalents"] for tuned in tuning.values())
    assert stage_of(settings, "tune").tokens == counted
    assert all(stage.name != "tune" for stage in estimate_of(replace(settings, tune=Tuning())).stages)


@pytest.mark.slow
def test_the_searches_of_all_targets_are_estimated(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "evopress.evaluate_stage.write_report", lambda folder: folder / "results.json"
    )  # it takes longest
    save_tiny("llama", tmp_path / "model")
    search = Guided(
        rounds=2, table_tokens=64, dampings=[1, 2], line_tokens=32, generations=6, offspring=3, stages=STAGES
    )
    settings = job(tmp_path, tmp_path / "model", search=search, targets=(3.0, 2.5))
    estimated, alone = stage_of(settings, "search"), stage_of(replace(settings, targets=()), "search")
    run_job(settings)
    with open(tmp_path / "run" / "front.csv", newline="") as file:
        spent = sum(float(row["token_equivalents"]) for row in csv.DictReader(file))
    assert estimated.tokens == pytest.approx(spent, rel=0.2)
    assert alone.tokens < estimated.tokens < 2 * alone.tokens


def test_drops_need_no_database(tmp_path):
    config("llama").save_pretrained(tmp_path)
    estimate = estimate_of(job(tmp_path, tmp_path, compress=Drop(), budget=Budget(metric="drop", target=1 / 3)))
    assert estimate.database_bytes == 0
    assert not estimate.stages[0].work and all(operation.kind != "decode" for operation in estimate.stages[1].work)


def test_the_dense_the_uniform_and_the_searched_model_are_evaluated(tmp_path):
    config("llama").save_pretrained(tmp_path)
    assert stage_of(job(tmp_path, tmp_path, search=Uniform()), "evaluate").tokens == 2 * 128  # searched is uniform
    assert stage_of(job(tmp_path, tmp_path, search=GUIDED), "evaluate").tokens == 3 * 128


def test_texts_that_are_measured_whole_are_estimated_roughly(tmp_path):
    config("llama").save_pretrained(tmp_path)
    both = stage_of(job(tmp_path, tmp_path, eval=Eval(datasets=["wikitext2"])), "evaluate")
    assert 2 * 240_000 < both.tokens - 2 * 128 < 2 * 350_000


def test_the_states_of_the_evaluation_are_sized_by_the_test_text_and_not_by_the_search_text(tmp_path):
    config("llama").save_pretrained(tmp_path)
    settings = job(tmp_path, tmp_path)
    long_test = replace(settings, data=replace(settings.data, test_tokens=32768))
    long_search = replace(settings, data=replace(settings.data, search_tokens=32768))
    states = "hidden states of teacher and candidates"
    for stage, changes in (("search", (False, False)), ("evaluate", (True, False))):
        before = memory_of(settings, stage)[states]
        assert [memory_of(other, stage)[states] > before for other in (long_test, long_search)] == list(changes)
    tight = replace(long_test, evaluator=EvaluatorSettings(states_gb=1e-3, batch_tokens=512))
    assert memory_of(tight, "evaluate")[states] <= 1e6 < memory_of(long_test, "evaluate")[states]


def test_advice_names_what_does_not_fit_and_the_setting_to_change(tmp_path):
    config("llama").save_pretrained(tmp_path)
    settings = job(tmp_path, tmp_path)
    estimate = estimate_of(settings)
    assert advice(estimate, free_memory=2**50, free_disk=2**50) == []
    (disk,) = advice(estimate, free_memory=2**50, free_disk=estimate.database_bytes - 1)
    assert "set outputs to a larger disk, or take fewer levels in compress.bits." in disk
    large = replace(settings.data, calibration_tokens=10**9)
    estimate = estimate_of(replace(settings, data=large, evaluator=EvaluatorSettings(states_gb=1000)))
    (memory,) = advice(estimate, free_memory=2 * 10**9, free_disk=2**50)
    assert memory.startswith("The database stage takes") and "lower evaluator.states_gb" in memory
    (memory,) = advice(estimate_of(replace(settings, data=large)), free_memory=6 * 10**9, free_disk=2**50)
    assert "weights of the calibration tokens: lower data.calibration_tokens or set compress.weigh_tokens=f" in memory
    estimate = estimate_of(replace(settings, data=large, compress=replace(settings.compress, weigh_tokens=False)))
    assert advice(estimate, free_memory=6 * 10**9, free_disk=2**50) == []
    assert estimate.states_bytes == 10**9 * 64 * 4 - 2 * 10**9
    (disk,) = advice(estimate, free_memory=6 * 10**9, free_disk=estimate.states_bytes)
    assert "hidden states" in disk and disk.endswith("or lower data.calibration_tokens.")


@pytest.mark.parametrize(
    ("changes", "advised"),
    [
        ({}, "set model.offload=true or model.dtype=bfloat16"),
        ({"dtype": "bfloat16"}, "set model.offload=true"),
        ({"offload": True}, "set model.dtype=bfloat16"),
        ({"dtype": "bfloat16", "offload": True}, None),
    ],
)
def test_settings_that_are_in_use_are_not_advised(changes, advised, tmp_path):
    config("llama").save_pretrained(tmp_path)
    settings = job(tmp_path, tmp_path)
    settings = replace(settings, model=replace(settings.model, **changes))
    remedies = {item.content: item.remedy for item in estimate_of(settings).stages[0].memory}
    assert (remedies["the model's weights"] or None) == advised


def test_the_smallest_batch_of_calibration_is_a_window(tmp_path):
    config("llama").save_pretrained(tmp_path)
    settings = job(tmp_path, tmp_path)
    window = settings.data.window
    sizes = [
        memory_of(replace(settings, evaluator=EvaluatorSettings(batch_tokens=tokens)), "database")
        for tokens in (1, window, 3 * window)
    ]
    states = [size["states of a batch whose tokens are weighed"] for size in sizes]
    assert states[0] == states[1] == states[2] / 3 > 0


def test_levels_are_counted_by_the_setting_that_the_compressor_has(tmp_path):
    config("llama").save_pretrained(tmp_path)
    for (compress, budget), setting in zip(COMPRESSORS, ("bits", "num_levels"), strict=True):
        estimate = estimate_of(job(tmp_path, tmp_path, compress=compress, budget=budget))
        assert estimate.disk_remedies == (f"take fewer levels in compress.{setting}",)
    one_level = job(tmp_path, tmp_path, compress=GPTQ(bits=[3], group_size=32))
    assert estimate_of(one_level).disk_remedies == ()


def test_where_no_setting_helps_none_is_advised():
    stage = StageEstimate("search", 0, {}, (MemoryItem("the libraries", 10**9),))
    (line,) = advice(ResourceEstimate(1, 1, 0, 0, (), (stage,)), free_memory=10**6, free_disk=2**50)
    assert NO_REMEDY in line


def test_the_plan_stage_logs_time_memory_and_disk_and_loads_nothing(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(speed, "MIN_SECONDS", 0.0)
    config("llama").save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    settings = job(tmp_path, tmp_path / "model", stages=("plan",))
    with caplog.at_level("INFO"):
        assert run_job(settings) is None
    for stage in ("database", "search", "evaluate"):
        assert f"\n{stage} " in caplog.text
    assert "min in all on this machine: database" in caplog.text.partition("disk: ")[0]
    assert not (tmp_path / "run").exists()
    estimate = estimate_of(settings)
    assert f"{estimate.num_weights:,} weights" in plan_text(plan_run(settings))


def test_a_model_whose_blocks_do_not_fit_is_planned_without_times(tmp_path, monkeypatch):
    config("llama").save_pretrained(tmp_path)
    run = plan_run(job(tmp_path, tmp_path))
    monkeypatch.setattr("evopress.planning.render.free_memory_bytes", lambda device: 2 * sample_bytes(run) - 1)
    monkeypatch.setattr("evopress.planning.render.measure_seconds", None)
    text = plan_text(run)
    assert TOO_LARGE_TO_TIME in text.splitlines()
    assert "The database stage takes" in text and "tokens/s" in text


@pytest.mark.parametrize("left", [10**9, 10**5, -(10**5)])
def test_packed_levels_take_at_most_half_of_what_a_gpu_has_left(left, tmp_path, monkeypatch):
    save_tiny("llama", tmp_path)
    settings = job(tmp_path, tmp_path)
    memory = memory_of(settings, "search")
    assert "packed levels" not in memory
    model = sum(memory[content] for content in ("the libraries", "the model's weights", "a batch in a block"))
    monkeypatch.setattr(PlannedRun, "device", torch.device("cuda"))
    monkeypatch.setattr("evopress.planning.memory.free_memory_bytes", lambda device: model + left)
    level_bytes = estimate_of(settings).database_bytes
    assert memory_of(settings, "search")["packed levels"] == max(0, min(level_bytes, left // 2))
    assert 10**5 // 2 < level_bytes < 10**9 // 2
