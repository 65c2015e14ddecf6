"""Levels that are imported from checkpoints: whole runs, from exports at two sizes to an export that mixes them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evopress.compressors.gguf import GGUF
from evopress.compressors.imported import Imported
from evopress.compressors.rtn import RTN
from evopress.export import Export
from evopress.pipeline import run_job
from evopress.search.baselines.uniform import Uniform
from evopress.space.budget import Budget
from evopress.space.settings import SpaceSettings
from tests.jobs import small_job

pytest.importorskip("compressed_tensors")
pytest.importorskip("gguf")

ANY = SpaceSettings(trade="any")
FORM = {
    "integers": ("compressed_tensors", lambda bits: RTN(bits=(bits,), group_size=32, symmetric=True)),
    "zero points": ("compressed_tensors", lambda bits: RTN(bits=(bits,), group_size=32)),
    "types": ("gguf", lambda bits: GGUF(types=(f"Q{bits}_0",))),
}


def exported(form: str, bits: int, model: Path, folder: Path) -> Path:
    """A checkpoint of the model with all layers at one width."""
    name, compressor = FORM[form]
    engine = "vllm" if form == "zero points" else "transformers"
    job = small_job(
        folder / f"{form}-{bits}",
        folder,
        model,
        compress=compressor(bits),
        budget=Budget(metric="bits", target=9),
        search=Uniform(),
        space=replace(ANY, tie="engine"),
        export=Export(formats=[name], dtype="float32", engine=engine),
        stages=("database", "search", "evaluate"),
    )
    run_job(replace(job, eval=replace(job.eval, prompts=[])))
    return job.folder / "checkpoints" / name


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every tensor of a checkpoint."""
    if (folder / "model.gguf").exists():
        from gguf import GGUFReader

        return {tensor.name: tensor.data.tobytes() for tensor in GGUFReader(folder / "model.gguf").tensors}
    state = load_file(folder / "model.safetensors")
    return {name: tensor.contiguous().view(torch.uint8).numpy().tobytes() for name, tensor in state.items()}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORM)
def test_a_searched_mix_of_two_sources_is_exported_with_exactly_their_tensors(form, model_folders, tmp_path):
    model = model_folders("llama")
    sources = {bits: exported(form, bits, model, tmp_path) for bits in (8, 4)}
    name, _ = FORM[form]
    engine = "vllm" if form == "zero points" else "transformers"
    job = small_job(
        tmp_path / "mixed",
        tmp_path,
        model,
        compress=Imported(sources=tuple(str(path) for path in sources.values())),
        budget=Budget(metric="bits", target=6.9),
        space=replace(ANY, tie="engine"),
        export=Export(formats=[name], dtype="float32", engine=engine),
    )
    profile = run_job(job)
    assert set(profile) == {0, 1}
    written = contents(job.folder / "checkpoints" / name)
    of_source = {bits: contents(path) for bits, path in sources.items()}
    taken = {bits: 0 for bits in sources}
    for tensor, data in written.items():
        matching = [bits for bits, tensors in of_source.items() if tensors.get(tensor) == data]
        assert matching, tensor
        if len(matching) == 1:
            taken[matching[0]] += 1
    assert all(taken.values())


@pytest.fixture(scope="module")
def packed(model_folders, tmp_path_factory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("packed")
    return {bits: exported("integers", bits, model_folders("llama"), folder) for bits in (8, 4)}


def build(model: Path, folder: Path, *sources: Path, **changes) -> None:
    """Build the database of the levels of these sources."""
    job = small_job(
        folder / "run",
        folder,
        model,
        compress=Imported(sources=tuple(map(str, sources))),
        budget=Budget(metric="bits", target=8.6),
        stages=("database",),
        **{"space": ANY, **changes},
    )
    run_job(job)


def test_plans_check_and_estimate_runs_with_imported_levels(packed, model_folders, tmp_path, caplog):
    job = small_job(
        tmp_path / "run",
        tmp_path,
        model_folders("llama"),
        compress=Imported(sources=tuple(map(str, packed.values()))),
        budget=Budget(metric="bits", target=8),
        space=ANY,
        stages=("plan",),
    )
    with caplog.at_level("INFO"):
        run_job(job)
    assert "the plan" in caplog.text
    assert not (tmp_path / "databases").exists()


def changed(source: Path, folder: Path, change) -> Path:
    """A copy of a checkpoint whose tensors were changed."""
    shutil.copytree(source, folder)
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")
    return folder


LAYER = "model.layers.1.mlp.up_proj"


def fewer_rows(state: dict) -> None:
    state[f"{LAYER}.weight_packed"] = state[f"{LAYER}.weight_packed"][:-1].clone()


def no_scales(state: dict) -> None:
    state[f"{LAYER}.weight_packed"] = state[f"{LAYER}.weight_packed"].clone()
    state[f"{LAYER}.weight_scale"] = torch.full_like(state[f"{LAYER}.weight_scale"], torch.inf)


def other_norm(state: dict) -> None:
    state["model.layers.2.input_layernorm.weight"] = 2 * state["model.layers.2.input_layernorm.weight"]


def shorter_norm(state: dict) -> None:
    state["model.norm.weight"] = state["model.norm.weight"][:-1].clone()


def missing_codes(state: dict) -> None:
    del state[f"{LAYER}.weight_packed"]


UNFITTING = {
    "fewer rows": (fewer_rows, rf"{LAYER}\.weight_packed of .*copy has the shape \[127, 8\], but 128 × 64 weights"),
    "no finite scales": (no_scales, rf"{LAYER} of .*copy cannot be read: scales are not finite"),
    "no codes": (missing_codes, rf"{LAYER}\.weight_packed of .*copy is missing"),
    "another norm": (other_norm, r"model\.layers\.2\.input_layernorm\.weight of .*copy differs from that of the model"),
    "a shorter norm": (shorter_norm, r"model\.norm\.weight of .*copy has the shape \[63\], but in the model it has \["),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", UNFITTING)
def test_what_does_not_fit_is_an_error_with_the_file_and_the_tensor(case, packed, model_folders, tmp_path):
    change, message = UNFITTING[case]
    copy = changed(packed[4], tmp_path / "copy", change)
    with pytest.raises(ValueError, match=message):
        build(model_folders("llama"), tmp_path, packed[8], copy)


def test_a_checkpoint_of_another_model_is_refused(packed, model_folders, tmp_path):
    with pytest.raises(ValueError, match=r"compress\.sources: .* of .*compressed_tensors differs from that of the mod"):
        build(model_folders("mistral"), tmp_path, packed[8])


def test_a_layer_that_no_source_has_compressed_is_named(packed, model_folders, tmp_path):
    def without(state: dict) -> None:
        for name in [name for name in state if name.startswith(f"{LAYER}.")]:
            del state[name]

    copies = [changed(path, tmp_path / f"copy{bits}", without) for bits, path in packed.items()]
    with pytest.raises(ValueError, match=rf"{LAYER} is compressed in none of compress\.sources"):
        build(model_folders("llama"), tmp_path, *copies)
    build(model_folders("llama"), tmp_path / "one", packed[8], copies[1])  # it has a single level


def test_new_files_of_a_source_make_a_new_database(packed, model_folders, tmp_path):
    copy = changed(packed[4], tmp_path / "copy", lambda state: None)
    build(model_folders("llama"), tmp_path, copy)
    state = load_file(copy / "model.safetensors")
    state[f"{LAYER}.weight_scale"] *= 1.01
    save_file(state, copy / "model.safetensors")
    build(model_folders("llama"), tmp_path, copy)
    assert len(list((tmp_path / "databases").rglob("manifest.json"))) == 2


@pytest.mark.slow
def test_all_layers_of_a_block_come_from_one_source_with_blocks_as_units(packed, model_folders, tmp_path):
    job = small_job(
        tmp_path / "run",
        tmp_path,
        model_folders("llama"),
        compress=Imported(sources=tuple(map(str, packed.values()))),
        budget=Budget(metric="bits", target=6),
        space=SpaceSettings(trade="any", tie="block"),
    )
    run_job(replace(job, eval=replace(job.eval, prompts=[]), export=Export(formats=["compressed_tensors"])))
    units = json.loads((job.folder / "profile.json").read_text())["units"]
    assert [unit["unit"].count("+") for unit in units] == [6, 6, 6]
    assert {unit["label"] for unit in units} <= {
        "integers-8/checkpoints/compressed_tensors",
        "integers-4/checkpoints/compressed_tensors",
    }


def test_rounding_that_was_learnt_over_blocks_leads_to_a_warning_unless_blocks_are_units(packed, tmp_path):
    folder = tmp_path / "rounded"
    folder.mkdir()
    settings = {"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq", "bits": 4, "sym": True}
    (folder / "config.json").write_text(json.dumps({"quantization_config": settings}))
    save_file({"x": torch.zeros(1)}, folder / "model.safetensors")
    compressor = Imported(sources=(str(folder),))
    (advice,) = compressor.advice(ANY)
    assert "set space.tie=block" in advice
    assert not compressor.advice(SpaceSettings(trade="any", tie="block"))
    assert not Imported(sources=(str(packed[4]),)).advice(ANY)


def test_blocks_as_units_do_not_go_with_dropped_parts_of_blocks():
    with pytest.raises(ValueError, match=r"set space\.drops=block, or another space\.tie"):
        SpaceSettings(trade="any", tie="block", drops="subblock")


WRONG = {
    "nothing": ("missing", "is neither a GGUF file nor a folder"),
    "an empty folder": ("empty", "has no config.json with safetensors files, and no model.gguf"),
    "a dense model": ("dense", "is not compressed: name checkpoints of GGUF, compressed-tensors, GPTQ"),
    "another method": ("other", "is packed by 'bitsandbytes'"),
    "not a GGUF file": ("text.gguf", "cannot be read"),
    "no bits": ("no_bits", "quantization_config in .*no_bits/config.json is malformed"),
    "bits in words": ("words", "quantization_config in .*words/config.json is malformed"),
    "too many bits": ("wide", "wide has codes of 16 bits, but only codes of 2 to 8 bits can be imported"),
    "a group without weights": ("group", "quantization_config in .*group/config.json is malformed"),
    "no JSON": ("text", "quantization_config in .*text/config.json is malformed"),
    "a packing of AutoRound": ("packing", "is packed by 'auto-round': name checkpoints of GGUF, compressed-tensors"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_source_that_cannot_be_imported_is_refused_at_start_up(case, model_folders, tmp_path):
    name, message = WRONG[case]
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.gguf").write_text("no model")
    for folder, config in (
        ("dense", {}),
        ("other", {"quantization_config": {"quant_method": "bitsandbytes"}}),
        ("no_bits", {"quantization_config": {"quant_method": "gptq"}}),
        ("words", {"quantization_config": {"quant_method": "gptq", "bits": "four"}}),
        ("wide", {"quantization_config": {"quant_method": "gptq", "bits": 16}}),
        ("group", {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"group_0": {}}}}),
        ("text", None),
        ("packing", {"quantization_config": {"quant_method": "auto-round", "packing_format": "marlin", "bits": 4}}),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(json.dumps(config) if config is not None else "{")
        save_file({"x": torch.zeros(1)}, tmp_path / folder / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        build(model_folders("llama"), tmp_path / "work", tmp_path / name)
    assert not (tmp_path / "work").exists()


def test_a_source_is_named_once(packed, model_folders, tmp_path):
    with pytest.raises(ValueError, match="names a checkpoint twice"):
        build(model_folders("llama"), tmp_path, packed[4], packed[4])
