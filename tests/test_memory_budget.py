"""Whole runs with a budget of memory, and with a mixture of experts: results, report and card say what they take."""

from dataclasses import replace

import pytest

from evopress.compressors.drop import Drop
from evopress.compressors.float import Float
from evopress.compressors.gguf import GGUF
from evopress.compressors.gptq import GPTQ
from evopress.export import Export
from evopress.models.active_experts import active_parameters
from evopress.pipeline import run_job
from evopress.planning.planned_run import plan_run
from evopress.planning.render import experts_line
from evopress.report.comparison import MEMORY, pareto_points, size_axis
from evopress.report.read_run import read_run
from evopress.report.run_page import headline
from evopress.runtime.json_files import read_json
from evopress.space.active import active_bytes
from evopress.space.memory import MemoryBudget
from evopress.space.settings import SpaceSettings
from tests.jobs import small_job

pytestmark = pytest.mark.slow

JOINT = SpaceSettings(trade="any", drops="subblock")
BUDGET = MemoryBudget(target="210KB", context=100, reserve="10KB")


def ran(folder, model_folders, **changes):
    job = small_job(folder / "run", folder, model_folders("llama"), **{"budget": BUDGET, **changes})
    return job, run_job(job), read_json(job.folder / "results.json")


@pytest.mark.parametrize(
    ("compress", "space", "target"),
    [
        (GPTQ(bits=[2, 3, 4], group_size=32), SpaceSettings(), "210KB"),
        (GPTQ(bits=[2, 3, 4], group_size=32), JOINT, "170KB"),
        (Drop(), SpaceSettings(), "330KB"),
        (Float(levels=["fp8", "bf16"]), SpaceSettings(), "310KB"),
        (GGUF(types=["Q8_0", "Q4_0"]), JOINT, "220KB"),
    ],
)
def test_a_run_fits_the_memory_and_records_the_parts(compress, space, target, model_folders, tmp_path):
    budget = replace(BUDGET, target=target)
    job, profile, results = ran(tmp_path, model_folders, compress=compress, space=space, budget=budget)
    run = plan_run(job)
    parts = results["budget"]["parts"]
    assert parts == budget.parts(run.space, profile)
    assert sum(parts.values()) == results["budget"]["achieved"] <= float(target.removesuffix("KB")) * 1000
    kept = sum(2 * 2 * 16 * 2 * 100 for _ in range(3))  # keys and values, 2 heads of 16, 2 bytes, 100 tokens, 3 blocks
    assert results["memory"]["dense"]["cache"] == kept
    assert results["memory"]["searched"] == parts
    assert sum(results["memory"]["uniform"].values()) <= results["budget"]["achieved"] + 20_000


def test_the_report_and_the_card_name_the_parts_of_the_memory(model_folders, tmp_path):
    job, _, results = ran(
        tmp_path,
        model_folders,
        compress=GGUF(types=["Q8_0", "Q4_0"]),
        budget=replace(BUDGET, target="240KB", kv="q8_0"),
        export=Export(formats=["gguf"], pre_tokenizer="default"),
    )
    parts = results["budget"]["parts"]
    run = read_run(job.folder)
    facts = {name: value for name, value, _ in headline(run)}
    assert {facts[f"Memory: {name}"] for name in parts} == {f"{size / 1e6:.2f} MB" for size in parts.values()}
    assert run.title.endswith("240KB of memory")
    assert size_axis([run]) == MEMORY
    sizes = {point.candidate: point.size for point in pareto_points([run], "pydoc")}
    assert sizes["searched"] == sum(parts.values()) / 1e6
    card = (job.folder / "checkpoints/gguf/README.md").read_text()
    assert f"cache {parts['cache'] / 1e6:.2f} MB" in card and "1 x 100 tokens in q8_0" in card


def test_weights_in_memory_are_the_tensors_of_the_file(model_folders, tmp_path):
    _, _, results = ran(
        tmp_path,
        model_folders,
        compress=GGUF(types=["Q8_0", "Q4_0"]),
        budget=replace(BUDGET, target="240KB"),
        export=Export(formats=["gguf"], pre_tokenizer="default"),
    )
    from gguf import GGUFReader

    reader = GGUFReader(tmp_path / "run/checkpoints/gguf/model.gguf")
    assert results["budget"]["parts"]["weights"] == sum(int(tensor.n_bytes) for tensor in reader.tensors)


def test_a_mixture_of_experts_has_active_bytes_in_its_results_and_report(model_folders, tmp_path):
    job = small_job(tmp_path / "run", tmp_path, model_folders("mixtral"))
    profile = run_job(job)
    run, results = plan_run(job), read_json(job.folder / "results.json")
    active = results["active_bytes"]
    assert active["searched"] == active_bytes(run.space, run.model, profile) < results["searched"]["size_bytes"]
    assert active["dense"] == 2 * active_parameters(run.model) < results["dense"]["size_bytes"]
    (value,) = (value for name, value, _ in headline(read_run(job.folder)) if name == "Active per token")
    assert value == f"{active['searched'] / 1e6:.2f} MB"
    assert f"a token uses {active_parameters(run.model):,} (" in "".join(experts_line(run))
