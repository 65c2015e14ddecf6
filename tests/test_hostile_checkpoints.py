"""Malicious folders with a model are refused, or loaded without what is malicious, by every function that loads one.

Where transformers would ask whether code may be run, the answer here is yes. Code and pickles create `canary`.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

import evopress
from evopress.compressors.gguf import GGUF
from evopress.compressors.rtn import RTN
from evopress.export import Export, write_checkpoints
from evopress.models.file_checks import ADAPTER, INDEX
from evopress.models.loading import load_model, load_structure, load_tokenizer
from evopress.models.source import ModelSource
from tests.export.test_nemotron_nas import wide_llama
from tests.exports import TOKENS, compressed, searched_drops
from tests.tiny_models import save_tiny, tiny

pytestmark = [pytest.mark.counts("hostile files"), pytest.mark.filterwarnings("ignore")]

CODE = "open({canary!r}, 'w').close()\nclass Evil: pass\n"
AUTO_MAP = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}


def by_path(folder: Path) -> PreTrainedModel:
    """As a run loads `model.path`."""
    source = ModelSource(name="evil", path=str(folder), dtype="float32", device="cpu")
    return load_model(source, folder.parent / "cache").model


def structure_by_path(folder: Path) -> PreTrainedModel:
    """As a plan reads `model.path`."""
    source = ModelSource(name="evil", path=str(folder), dtype="float32", device="cpu")
    return load_structure(source, folder.parent / "cache").model


LOADERS: dict[str, Callable[[Path], PreTrainedModel]] = {
    "model.path": by_path,
    "model.path of a plan": structure_by_path,
    "evopress.load": evopress.load,
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    """A checkpoint of every format, and `dense` and `vision`, models as transformers saves them."""
    folder = tmp_path_factory.mktemp("checkpoints")
    save_tiny("llama", folder / "dense")
    save_tiny("gemma3", folder / "vision")
    float32 = {"dtype": "float32"}
    symmetric = RTN(bits=(2, 4), group_size=32, symmetric=True, scale_dtype="float32")
    zero_points = RTN(bits=(4, 8), group_size=32, scale_dtype="float32")
    lm = tiny("llama")
    for settings, searched in (
        (Export(formats=["compressed_tensors"], **float32), compressed(lm, symmetric, folder / "symmetric")),
        (Export(formats=["gguf"], **float32), compressed(lm, GGUF(types=("Q8_0", "Q4_0")), folder / "types")),
        (Export(formats=["nemotron_nas"], **float32), searched_drops(wide_llama(), {(1, "attention")})),
    ):
        write_checkpoints(settings, searched, tokens=TOKENS, facts={}, folder=folder)
    settings = Export(formats=["compressed_tensors"], engine="vllm", **float32)
    searched = compressed(lm, zero_points, folder / "zero_points", tie="engine")
    write_checkpoints(settings, searched, tokens=TOKENS, facts={}, folder=folder / "vllm")
    (folder / "vllm" / "compressed_tensors").rename(folder / "packed_zeros")
    return folder


@pytest.fixture
def copy(checkpoints, tmp_path, monkeypatch) -> Callable[[str], Path]:
    """A function that copies a checkpoint next to a module that creates `canary` when it is imported."""
    monkeypatch.setattr("builtins.input", lambda *prompt: "y")

    def copied(name: str) -> Path:
        folder = Path(shutil.copytree(checkpoints / name, tmp_path / "model"))
        (folder / "evil.py").write_text(CODE.format(canary=str(tmp_path / "canary")))
        return folder

    yield copied
    assert not (tmp_path / "canary").exists()


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def write_pickle(path: Path, canary: Path) -> None:
    """A pickle that creates `canary` when it is opened."""
    path.write_bytes(f"c__builtin__\nexec\n(Vopen({str(canary)!r}, 'w')\ntR.".encode())


def save_index(folder: Path, name: str, *, index: str = INDEX) -> None:
    """An index by which every tensor is in the file `name`, in place of the weights."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(tensors, name)}))


FORMATS = ("dense", "compressed_tensors", "packed_zeros", "gguf", "nemotron_nas")


@pytest.mark.parametrize("name", FORMATS)
def test_checkpoints_of_every_format_are_loaded_without_the_code_next_to_them(name, copy):
    folder = copy(name)
    edit(folder / "config.json", auto_map=AUTO_MAP)
    (folder / "custom_generate").mkdir()
    shutil.copy(folder / "evil.py", folder / "custom_generate" / "generate.py")
    for path in folder.glob("*.py"):
        path.write_text((folder / "evil.py").read_text())  # also the configuration that nemotron_nas comes with
    with torch.no_grad():
        assert evopress.load(folder)(input_ids=TOKENS).logits.isfinite().all()


@pytest.mark.parametrize("loader", LOADERS)
def test_a_model_that_needs_code_is_not_loaded(loader, copy):
    folder = copy("dense")
    edit(folder / "config.json", model_type="evil", auto_map=AUTO_MAP)
    with pytest.raises(ValueError, match=r"custom code|its own Python code, which is not run"):
        LOADERS[loader](folder)


@pytest.mark.parametrize("name", ["compressed_tensors", "packed_zeros", "gguf"])
def test_a_checkpoint_that_needs_code_is_not_loaded(name, copy):
    folder = copy(name)
    edit(folder / "config.json", model_type="evil", auto_map=AUTO_MAP)
    with pytest.raises(ValueError, match=r"cannot be loaded as an exported checkpoint.*custom code"):
        evopress.load(folder)


KERNELS = {
    "attn_implementation": "somebody/kernel",
    "_attn_implementation": "somebody/kernel",
    "_attn_implementation_internal": "somebody/kernel",
    "a kernel that transformers chooses": "flash_attention_2",
    "version": "somebody/kernel@main:function",
}


@pytest.mark.parametrize("key", KERNELS)
@pytest.mark.parametrize("loader", LOADERS)
def test_a_configuration_cannot_choose_an_attention_kernel(loader, key, copy, monkeypatch):
    fetched = []
    monkeypatch.setattr("transformers.modeling_utils.is_kernels_available", lambda *a, **k: True)
    monkeypatch.setattr("transformers.modeling_utils.lazy_import_flash_attention", lambda *a, **k: fetched.append(a))
    folder = copy("dense")
    edit(folder / "config.json", **{key if key.lstrip("_").startswith("attn") else "attn_implementation": KERNELS[key]})
    if key == "_attn_implementation_internal":
        LOADERS[loader](folder)  # transformers ignores this key
    else:
        with pytest.raises(ValueError, match=r"which may be code from the hub: set .*attention to sdpa"):
            LOADERS[loader](folder)
    assert not fetched


@pytest.mark.parametrize("loader", ["model.path of a plan", "evopress.load"])
def test_the_configuration_of_a_model_inside_a_model_cannot_choose_a_kernel_either(loader, copy):
    folder = copy("vision")
    edit(folder / "config.json", attn_implementation={"text_config": "somebody/kernel"})
    with pytest.raises(ValueError, match="asks for somebody/kernel, which may be code from the hub"):
        LOADERS[loader](folder)


@pytest.mark.parametrize("name", ["packed_zeros", "nemotron_nas"])
def test_a_checkpoint_that_is_decoded_here_cannot_choose_a_kernel(name, copy):
    folder = copy(name)
    edit(folder / "config.json", attn_implementation="somebody/kernel")
    with pytest.raises(ValueError, match="asks for somebody/kernel, which may be code from the hub"):
        evopress.load(folder)
    evopress.load(folder, attention="eager")


@pytest.mark.parametrize("loader", ["model.path", "evopress.load"])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "adapter_model.bin", "weights.bin"])
def test_a_pickle_is_not_opened_however_the_folder_names_it(name, loader, copy, tmp_path):
    folder = copy("dense")
    if name == "weights.bin":
        save_index(folder, name)
    else:
        (folder / "model.safetensors").unlink()
    if name == "adapter_model.bin":
        edit(folder / "config.json", transformers_weights=name)
    write_pickle(folder / name, tmp_path / "canary")
    with pytest.raises(ValueError, match="cannot be loaded as"):
        LOADERS[loader](folder)


@pytest.mark.parametrize("loader", ["model.path", "evopress.load"])
@pytest.mark.parametrize("where", ["../outside.safetensors", "absolute"])
@pytest.mark.parametrize("index", [INDEX, "other.safetensors.index.json", None])
def test_weights_outside_of_the_folder_are_not_read(index, where, loader, copy, tmp_path):
    folder = copy("dense")
    shutil.copy(folder / "model.safetensors", tmp_path / "outside.safetensors")
    name = str(tmp_path / "outside.safetensors") if where == "absolute" else where
    if index:
        save_index(folder, name, index=index)
    if index != INDEX:
        edit(folder / "config.json", transformers_weights=index or name)
    with pytest.raises(ValueError, match=r"outside\.safetensors'?, which is n.*safetensors file in its folder"):
        LOADERS[loader](folder)


@pytest.mark.parametrize("loader", LOADERS)
def test_a_folder_cannot_stand_for_another_model(loader, copy):
    folder = copy("dense")
    adapter = {"base_model_name_or_path": "somebody/model", "peft_type": "LORA"}
    (folder / ADAPTER).write_text(json.dumps(adapter))
    with pytest.raises(ValueError, match=r"it is an adapter of another model, by its adapter_config\.json"):
        LOADERS[loader](folder)


def test_missing_weights_are_not_filled_with_random_numbers(copy):
    folder = copy("dense")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights are missing, for example model\.layers\.1\.mlp\.up_proj\.weight"):
        evopress.load(folder)


@pytest.mark.parametrize("dtype", ["load", "int8", "hub.load", 1, ["float32"]], ids=str)
def test_the_type_of_a_checkpoint_is_one_of_weights(dtype, copy):
    folder = copy("dense")
    edit(folder / "config.json", dtype=dtype)
    with pytest.raises(ValueError, match=r"names the type .*, which is no type of weights"):
        evopress.load(folder)


@pytest.mark.parametrize("text", ["", "[]", '{"model_type": "llama", "model_type": "opt"}', "[" * 100_000], ids=len)
def test_a_configuration_that_is_no_object_is_refused(text, copy):
    folder = copy("dense")
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match="cannot be loaded as an exported checkpoint"):
        evopress.load(folder)


@pytest.mark.parametrize("method", ["mxfp4", "fp_quant", "evil", None])
def test_only_the_packing_of_compressed_tensors_is_read(method, copy):
    """transformers fetches kernels from the hub for some of the others."""
    folder = copy("compressed_tensors")
    quantization = json.loads((folder / "config.json").read_text())["quantization_config"]
    edit(folder / "config.json", quantization_config={**quantization, "quant_method": method})
    with pytest.raises(ValueError, match="only compressed-tensors can be read"):
        evopress.load(folder)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("weight_shape", lambda tensor: torch.tensor([64, 2**40])),
        ("weight_shape", lambda tensor: torch.tensor([2**40, 64])),
        ("weight_shape", lambda tensor: torch.tensor([-1, 64])),
        ("weight_packed", lambda tensor: tensor[:, :1]),
        ("weight_packed", lambda tensor: tensor.float()),
        ("weight_scale", lambda tensor: tensor[:1]),
        ("weight_scale", lambda tensor: tensor * float("nan")),
        ("weight_zero_point", lambda tensor: tensor[:, :0]),
        ("num_bits", 0),
        ("num_bits", 2**31),
        ("num_bits", "4"),
        ("targets", ["../model"]),
    ],
)
def test_packed_layers_of_another_form_are_refused(part, change, copy):
    folder = copy("packed_zeros")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    quantization = json.loads((folder / "config.json").read_text())["quantization_config"]
    group = next(iter(quantization["config_groups"].values()))
    if part in ("num_bits", "targets"):
        (group["weights"] if part == "num_bits" else group)[part] = change
        edit(folder / "config.json", quantization_config=quantization)
    else:
        name = f"{group['targets'][0]}.{part}"
        tensors[name] = change(tensors[name]).contiguous()
        save_file(tensors, path)
    with pytest.raises(ValueError, match="cannot be loaded as an exported checkpoint"):
        evopress.load(folder)


NO_OPS = {"attention": {"no_op": True}, "ffn": {"no_op": True}}


@pytest.mark.parametrize(
    "block_configs",
    [[NO_OPS] * 50, [], {}, 7, [{}], [{"attention": 1, "ffn": 2}], [{"attention": {}, "ffn": {}}], [None]],
    ids=lambda value: str(value)[:30],
)
def test_a_list_of_blocks_of_another_form_is_refused(block_configs, copy):
    folder = copy("nemotron_nas")
    edit(folder / "config.json", block_configs=block_configs)
    with pytest.raises(ValueError, match="cannot be loaded as an exported checkpoint"):
        evopress.load(folder)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "vocab_size"])
def test_a_checkpoint_of_a_huge_or_invalid_shape_is_refused(key, name, copy):
    folder = copy(name)
    edit(folder / "config.json", **{key: {"hidden_size": 10**9, "num_hidden_layers": 7, "vocab_size": "300"}[key]})
    with pytest.raises(ValueError, match="cannot be loaded as an exported checkpoint"):
        evopress.load(folder)


def test_checkpoints_do_not_pass_on_code_that_a_model_names_but_does_not_need(copy, tmp_path):
    """Whoever loads one with `trust_remote_code=True`, as vLLM needs for nemotron_nas, would run it."""
    folder = copy("dense")
    shutil.rmtree(folder)
    save_tiny("gemma3", folder)
    (folder / "processor_config.json").write_text('{"processor_class": "Gemma3Processor"}')
    for name in ("config.json", "tokenizer_config.json", "processor_config.json"):
        edit(folder / name, auto_map={key: f"somebody/repository--{value}" for key, value in AUTO_MAP.items()})
    lm = load_model(ModelSource(name="evil", path=str(folder), dtype="float32", device="cpu"), tmp_path / "cache")
    settings = Export(formats=["hf", "zeroed"], dtype="float32")
    write_checkpoints(settings, searched_drops(lm, set()), tokens=TOKENS, facts={}, folder=tmp_path / "made")
    written = list((tmp_path / "made").glob("*/*.json"))
    assert {path.name for path in written} >= {"config.json", "tokenizer_config.json", "processor_config.json"}
    assert not [path for path in written if "somebody/repository" in path.read_text()]


def test_code_next_to_a_gguf_file_is_not_run_when_it_is_converted(copy, tmp_path):
    folder = copy("gguf")
    for name in ("config.json", "tokenizer_config.json"):
        edit(folder / name, auto_map=AUTO_MAP)
    source = ModelSource(name="evil", path=str(folder / "model.gguf"), dtype="float32", device="cpu")
    assert load_structure(source, tmp_path / "cache").num_blocks == 3
    assert load_tokenizer(source, tmp_path / "cache").vocab_size
    assert load_model(source, tmp_path / "cache").num_blocks == 3
    edit(folder / "tokenizer_config.json", tokenizer_class="EvilTokenizer")
    with pytest.raises(ValueError, match=r"its own Python code, which is not run"):
        load_model(source, tmp_path / "other cache")
