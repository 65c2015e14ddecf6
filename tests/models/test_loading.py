"""A model from a folder is what was saved there; what cannot be loaded is refused with the key to change."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from pydantic import ValidationError

from evopress.models.loading import load_model, wrap_model
from evopress.models.source import ModelSource
from evopress.runtime.json_files import read_json
from tests import plain
from tests.tiny_models import FAMILIES, random_model, save_tiny, tiny, token_windows, tokenizer


def source(path: Path | str, **changes) -> ModelSource:
    return ModelSource(**{"name": "tiny", "path": str(path), "dtype": "float32", "device": "cpu", **changes})


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    save_tiny("llama", path)
    return path


@pytest.fixture
def copy(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_is_loaded_unchanged(family, tmp_path):
    save_tiny(family, tmp_path)
    lm, saved = load_model(source(tmp_path), tmp_path), tiny(family)
    loaded = lm.model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in saved.model.state_dict().items())
    tokens = token_windows(2, 20)
    torch.testing.assert_close(plain.logits(lm.model, tokens), plain.logits(saved.model, tokens))
    assert lm.family == saved.family and lm.dtype == torch.float32 and not lm.model.training
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())
    assert lm.tokenizer("naïve<s>")["input_ids"] == saved.tokenizer("naïve<s>")["input_ids"]


def test_identity_does_not_depend_on_the_folder_or_the_attention_implementation(folder, copy, tmp_path):
    first = load_model(source(folder), tmp_path).identity
    assert load_model(source(copy, name="other", attention="eager"), tmp_path).identity == first
    assert load_model(source(folder, dtype="bfloat16"), tmp_path).identity != first


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_have_the_requested_type(dtype, folder, tmp_path):
    assert load_model(source(folder, dtype=dtype), tmp_path).dtype == getattr(torch, dtype)


def test_auto_chooses_a_type_and_a_device_that_this_machine_has(folder, tmp_path):
    lm = load_model(source(folder, dtype="auto", device="auto"), tmp_path)
    assert lm.dtype in (torch.float32, torch.bfloat16)
    assert lm.device.type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_requested_attention_implementation_is_used(attention, folder, tmp_path):
    lm = load_model(source(folder, attention=attention), tmp_path)
    assert lm.model.config._attn_implementation == attention


def test_a_path_relative_to_a_package_is_found(folder, tmp_path, monkeypatch):
    package = tmp_path / "packaged_model"
    package.mkdir()
    (package / "__init__.py").write_text("")
    shutil.copytree(folder, package / "inside")
    monkeypatch.syspath_prepend(tmp_path)
    lm = load_model(source("inside", package="packaged_model"), tmp_path)
    assert lm.identity == load_model(source(folder), tmp_path).identity
    with pytest.raises(ValueError, match=r"model\.path is 'outside'.*does not exist in the package packaged_model"):
        load_model(source("outside", package="packaged_model"), tmp_path)
    with pytest.raises(ValueError, match=r"model\.package is 'no_such_package'.*pip install.*no-such-package"):
        load_model(source("inside", package="no_such_package"), tmp_path)


@pytest.mark.parametrize("path", ["/no/such/model", "no/such/model.gguf", "/no/such/model.gguf"])
def test_a_path_that_does_not_exist_is_refused(path, tmp_path):
    with pytest.raises(ValueError, match=rf"model\.path is '{path}'.*exists"):
        load_model(source(path), tmp_path)


@pytest.mark.parametrize("path", ["somebody/some-model", "some-model"])
def test_a_hub_model_that_cannot_be_reached_is_explained(path, tmp_path):
    verbosity = transformers.logging.get_verbosity()
    with pytest.raises(ValueError, match=rf"model\.path '{path}' cannot be loaded.*give a hub id that can be reached"):
        load_model(source(path), tmp_path)
    assert transformers.logging.get_verbosity() == verbosity


def test_pickled_weights_are_never_read(copy, tmp_path):
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(b"\x80\x04junk, not a pickle")
    with pytest.raises(ValueError, match=r"model\.path.*safetensors"):
        load_model(source(copy), tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"model\.path.*cannot be loaded"):
        load_model(source(tmp_path), tmp_path)


@pytest.mark.parametrize("content", [b"", b"junk", None], ids=["empty", "junk", "truncated"])
def test_damaged_weights_are_refused(content, copy, tmp_path):
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(ValueError, match=r"model\.path.*cannot be loaded"):
        load_model(source(copy), tmp_path)


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
@pytest.mark.parametrize("method", ["awq", "gptq", "fp8", "bitsandbytes", "compressed-tensors", "mxfp4"])
def test_a_quantised_checkpoint_is_refused_from_its_configuration(method, key, copy, tmp_path):
    (copy / "model.safetensors").unlink()
    config = read_json(copy / "config.json")
    (copy / "config.json").write_text(json.dumps({**config, key: {"quant_method": method, "bits": 4}}))
    with pytest.raises(ValueError, match=rf"model\.path .*quantised already \({method},.*model that it was made from"):
        load_model(source(copy), tmp_path)


def test_a_quantised_model_in_memory_is_refused():
    model = random_model("llama")
    model.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(ValueError, match=r"mine is quantised already \(bitsandbytes"):
        wrap_model(model, tokenizer(), "mine")


def test_a_missing_tokenizer_is_named_and_may_come_from_another_folder(folder, copy, tmp_path):
    for file in copy.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ValueError, match=r"model\.path .*copy' has no tokenizer.*set model\.tokenizer.*error was: ."):
        load_model(source(copy), tmp_path)
    lm = load_model(source(copy, tokenizer=str(folder)), tmp_path)
    assert lm.tokenizer.get_vocab() == tokenizer().get_vocab()
    with pytest.raises(ValueError, match=r"model\.tokenizer '/no/such/folder' has no tokenizer"):
        load_model(source(copy, tokenizer="/no/such/folder"), tmp_path)


def test_a_damaged_configuration_is_refused(copy, tmp_path):
    (copy / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"model\.path.*cannot be loaded"):
        load_model(source(copy), tmp_path)


def test_weights_missing_from_the_file_are_refused(copy, tmp_path):
    """transformers would make them up."""
    model = random_model("llama")
    state = model.state_dict()
    del state["model.layers.1.mlp.up_proj.weight"]
    model.save_pretrained(copy, state_dict=state)
    with pytest.raises(ValueError, match=r"model\.path.*up_proj"):
        load_model(source(copy), tmp_path)


def test_a_gguf_file_that_does_not_exist_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"model\.gguf_file is 'missing\.gguf'"):
        load_model(source(folder, gguf_file="missing.gguf"), tmp_path)


def test_a_damaged_gguf_file_is_refused_and_leaves_nothing(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUFjunk")
    with pytest.raises(ValueError, match=r"model\.path.*cannot be loaded"):
        load_model(source(tmp_path / "model.gguf"), tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache" / "models").iterdir() if path.is_dir()]


@pytest.mark.parametrize("name", ["", "a/b", "..", "/x", "."])
def test_a_name_that_is_not_a_folder_name_is_refused(name):
    with pytest.raises(ValidationError, match=r"model\.name"):
        source("x", name=name)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", ""])
def test_an_unknown_device_is_refused(device):
    with pytest.raises(ValidationError, match=r"model\.device"):
        source("x", device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_does_not_exist_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"model\.device is 'cuda:1'.*model\.device=cpu"):
        load_model(source(folder, device="cuda:1"), tmp_path)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"dtype": "float64"}, "dtype"),
        ({"dtpye": "auto"}, "dtpye"),
        ({"family": {"layers": [["a"]], "nrom": 1}}, "nrom"),
    ],
)
def test_the_error_for_an_unknown_setting_names_it(change, key):
    with pytest.raises(ValidationError, match=key):
        source("x", **change)


def test_a_family_in_the_settings_is_used(folder, tmp_path):
    family = {"layers": [["self_attn.o_proj"], ["mlp.down_proj"]]}
    reason = "not compressed in this test"
    family["kept"] = {f"self_attn.{name}_proj": reason for name in "qkv"} | {
        f"mlp.{name}_proj": reason for name in ("gate", "up")
    }
    lm = load_model(source(folder, family=family), tmp_path)
    assert lm.layer_groups(0) == (("self_attn.o_proj",), ("mlp.down_proj",))
    with pytest.raises(ValueError, match=r"model\.family names 'mlp\.absent'"):
        load_model(source(folder, family={"layers": [["mlp.absent"]]}), tmp_path)


def test_the_paths_of_a_model_with_vision_may_be_given_as_well(tmp_path):
    save_tiny("gemma3", tmp_path)
    family = {
        "blocks": "model.language_model.layers",
        "norm": "model.language_model.norm",
        "head": "lm_head",
        "attention": "self_attn",
        "mlp": "mlp",
        "layers": [
            ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            ["self_attn.o_proj"],
            ["mlp.gate_proj", "mlp.up_proj"],
            ["mlp.down_proj"],
        ],
    }
    given, detected = (load_model(source(tmp_path, **changes), tmp_path) for changes in ({"family": family}, {}))
    assert given.block_names == detected.block_names and given.layer_groups(0) == detected.layer_groups(0)
    tokens = token_windows(2, 20)
    assert torch.equal(plain.logits(given.model, tokens), plain.logits(detected.model, tokens))
