"""Configurations and tokenizers of exports: transformers 4 and 5 read the same from them.

`EVOPRESS_TRANSFORMERS4` names a folder with a release of transformers 4, for the tests that compare exports in it:

    pip install --target FOLDER --no-deps transformers==4.57.3 huggingface_hub==0.36.0 tokenizers==0.22.1
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from evopress.compressors.rtn import RTN
from evopress.export import Export, write_checkpoints
from evopress.export.config_files import model_config, write_config_files
from evopress.export.older_names import TESTED_VERSION, tokenizer_config_for_both, with_older_names
from evopress.models.language_model import LanguageModel
from evopress.models.loading import wrap_model
from tests import plain
from tests.exports import TOKENS, compressed, needs_transformers4, run_in_transformers4, searched_drops
from tests.marks import slow_except
from tests.tiny_models import ALL_FAMILIES, config, random_model, tiny, tokenizer

SCALED = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {
        "rope_type": "yarn",
        "factor": 4.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "original_max_position_embeddings": 64,
    },
}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1 + index / 10 for index in range(8)],
    "long_factor": [2 + index / 10 for index in range(8)],
    "original_max_position_embeddings": 64,
}
"""What phi3 has in place of any other scaling."""

ONLY = {"phi3": LONG, "llama4_text": SCALED["llama3"]}
"""The only scaling that transformers 4 knows for a family."""

NEW_NAMES = ("rope_parameters", "dtype", "num_local_experts")
"""Keys that transformers 4 does not read in a model of one of the families, apart from the experts of those below."""

SAME_NUMBER_OF_EXPERTS = ("mixtral", "llama4_text", "gpt_oss")
"""Families for which both releases call it `num_local_experts`."""


def config_with_rope(family: str, kind: str) -> PretrainedConfig:
    """A base frequency, or two, that no release has as its default; and one of the ways to scale."""
    changed = config(family)
    text = changed.get_text_config()
    rope = getattr(text, "rope_parameters", None)
    if rope and "full_attention" in rope:
        rope["full_attention"] |= {"rope_theta": 3210.0, **SCALED[kind]}
        rope["sliding_attention"]["rope_theta"] = 4321.0
    elif rope:
        scaled = ONLY.get(family, SCALED[kind]) if kind != "default" else SCALED[kind]
        rope |= {"rope_theta": 3210.0, **scaled}
        if "original_max_position_embeddings" in scaled and family == "phi3":
            text.original_max_position_embeddings = scaled["original_max_position_embeddings"]
    return changed


def model_with(changed: PretrainedConfig, family: str) -> PreTrainedModel:
    """The random model of the family with another configuration."""
    model = AutoModelForCausalLM.from_config(changed, dtype=torch.float32).eval()
    model.load_state_dict(random_model(family).state_dict())
    return model


def written_config(changed: PretrainedConfig, family: str, folder: Path) -> dict:
    """config.json of an export of a model with this configuration."""
    dense = tiny(family)
    with torch.device("meta"):
        lm = replace(dense, model=AutoModelForCausalLM.from_config(changed))
    write_config_files(model_config(lm, torch.bfloat16), lm, folder)
    return json.loads((folder / "config.json").read_text())


def without_new_names(values: dict) -> dict:
    keys = {*NEW_NAMES} - ({"num_local_experts"} if values.get("model_type") in SAME_NUMBER_OF_EXPERTS else set())
    return {
        key: without_new_names(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if key not in keys
    }


def meaning(folder: Path) -> dict:
    """What transformers makes of a folder's config.json."""

    def plain_rope(values: dict) -> dict:
        """`type` is another name of `rope_type`, and a factor outside repeats the one inside."""
        rope = values.get("rope_parameters")
        inner = {key: plain_rope(value) for key, value in values.items() if isinstance(value, dict)}
        rope = {"rope_parameters": {key: value for key, value in rope.items() if key != "type"}} if rope else {}
        without_copy = {key: value for key, value in values.items() if key != "partial_rotary_factor"}
        return {**without_copy, **inner, **rope}

    return plain_rope(AutoConfig.from_pretrained(folder).to_dict())


@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_the_older_names_alone_mean_the_same_as_the_newer_ones(family, kind, tmp_path):
    values = written_config(config_with_rope(family, kind), family, tmp_path)
    meant = meaning(tmp_path)
    assert meant["dtype"] == "bfloat16"
    (tmp_path / "config.json").write_text(json.dumps(without_new_names(values)))
    assert meaning(tmp_path) == meant


@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_the_newer_names_mean_what_the_model_has(family, kind, tmp_path):
    changed = config_with_rope(family, kind)
    written_config(changed, family, tmp_path)
    found, expected = AutoConfig.from_pretrained(tmp_path).get_text_config(), changed.get_text_config()
    rope = {key: value for key, value in (getattr(found, "rope_parameters", None) or {}).items() if key != "type"}
    assert rope == (getattr(expected, "rope_parameters", None) or {})


@pytest.mark.parametrize("name", ["hf", "zeroed", "nemotron_nas", "compressed_tensors", "gguf"])
def test_every_format_writes_both_names(name, tmp_path):
    if name in ("compressed_tensors", "gguf"):
        pytest.importorskip(name, reason=f"needs the package {name}")
    wide = config_with_rope("llama", "llama3")
    wide.intermediate_size = 256  # what nemotron_nas needs
    lm = wrap_model(AutoModelForCausalLM.from_config(wide, dtype=torch.float32), tokenizer(), "wide")
    levels = RTN(bits=(8, 4), group_size=32, symmetric=True)
    searched = searched_drops(lm, {(1, "mlp")}) if name == "nemotron_nas" else compressed(lm, levels, tmp_path)
    write_checkpoints(Export(formats=[name]), searched, tokens=TOKENS, facts={}, folder=tmp_path)
    values = json.loads((tmp_path / name / "config.json").read_text())
    assert values["rope_parameters"] == {"rope_theta": values["rope_theta"], **values["rope_scaling"]}
    assert (values["rope_theta"], values["rope_scaling"]) == (3210.0, SCALED["llama3"])
    assert values["torch_dtype"] == values["dtype"]


def test_phi3_has_the_three_keys_that_transformers_4_takes(tmp_path):
    values = written_config(config_with_rope("phi3", "yarn"), "phi3", tmp_path)
    assert values["rope_scaling"].keys() == {"type", "short_factor", "long_factor"}
    assert values["rope_scaling"]["type"] == "longrope"


def test_layers_with_other_rotary_embeddings_have_a_frequency_of_their_own(tmp_path):
    values = written_config(config_with_rope("gemma3", "linear"), "gemma3", tmp_path)["text_config"]
    assert (values["rope_theta"], values["rope_local_base_freq"]) == (3210.0, 4321.0)
    assert values["rope_scaling"] == {"rope_type": "linear", "factor": 3.0}


def test_a_configuration_of_an_unknown_type_keeps_its_keys():
    values = {"model_type": "of_its_own", "rope_parameters": {"some": {}, "other": {}}, "width": 3}
    assert with_older_names(values) == values


@pytest.mark.parametrize("family", slow_except(ALL_FAMILIES, ("llama", "opt", "mixtral", "gemma3")))
def test_tensors_have_the_names_that_transformers_publishes(family, tmp_path):
    lm = tiny(family)
    write_checkpoints(
        Export(formats=["zeroed", "hf"]), searched_drops(lm, set()), tokens=TOKENS, facts={}, folder=tmp_path
    )
    random_model(family).save_pretrained(tmp_path)
    published = set(load_file(tmp_path / "model.safetensors"))
    for name in ("hf", "zeroed"):
        with safe_open(tmp_path / name / "model.safetensors", "pt") as file:
            assert set(file.keys()) == published


NAMED = {"image_token": "<s>"}
MORE = ["</s>"]


def changed_tokenizer() -> PreTrainedTokenizerBase:
    """With special tokens of both kinds: some that have a name, and some that have not."""
    changed = tokenizer()
    changed.add_special_tokens({"additional_special_tokens": MORE})
    changed.chat_template = {"default": "{{ messages[0].content }}", "tool_use": "{{ 'tools' }}"}
    return changed


def test_a_tokenizer_in_memory_has_a_class_and_keys_that_both_releases_know(tmp_path):
    changed = changed_tokenizer()
    lm = wrap_model(random_model("llama"), changed, "tiny")
    write_config_files(model_config(lm, torch.float32), lm, tmp_path)
    values = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert values["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert values["additional_special_tokens"] == MORE
    assert not isinstance(values.get("extra_special_tokens"), list)  # transformers 4 expects names for them
    found = AutoTokenizer.from_pretrained(tmp_path)
    assert found("naïve<s></s>")["input_ids"] == changed("naïve<s></s>")["input_ids"]
    assert found.chat_template == changed.chat_template
    assert set(MORE) <= set(found.all_special_tokens)


def test_tokens_with_names_are_written_as_both_releases_read_them():
    new = {"backend": "tokenizers", "tokenizer_class": "GemmaTokenizer", "bos_token": "<s>"}
    tokens = {"extra_special_tokens": ["<a>"], **NAMED}
    assert tokenizer_config_for_both({**new, **tokens}) == {
        **new,
        **NAMED,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": ["<a>"],
        "extra_special_tokens": NAMED,
    }
    old = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "extra_special_tokens": NAMED}
    assert tokenizer_config_for_both(old) == old


IN_TRANSFORMERS4 = """
import sys
from pathlib import Path
import torch, transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
print(transformers.__version__)
tokens, text = load_file(sys.argv[1])["tokens"], "naïve<s></s>"
for folder in map(Path, sys.argv[2:]):
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
    GenerationConfig.from_pretrained(folder)
    with torch.no_grad():
        logits = model(input_ids=tokens, use_cache=False).logits
    ids = torch.tensor(AutoTokenizer.from_pretrained(folder)(text)["input_ids"])
    save_file({"logits": logits.float().contiguous(), "ids": ids}, folder.parent / (folder.name + ".found"))
"""


def compare_in_transformers4(expected: dict[Path, torch.Tensor], folder: Path, *, tolerance: float) -> None:
    """Compare the logits of checkpoints, and their tokens, with those that transformers 4 computes."""
    save_file({"tokens": TOKENS}, folder / "tokens")
    assert run_in_transformers4(IN_TRANSFORMERS4, folder / "tokens", *expected).split()[0] == TESTED_VERSION
    for path, logits in expected.items():
        found = load_file(path.parent / f"{path.name}.found")
        torch.testing.assert_close(found["logits"], logits, rtol=tolerance, atol=tolerance, msg=str(path))
        assert found["ids"].tolist() == tokenizer()("naïve<s></s>")["input_ids"]


def exported(lm: LanguageModel, format_name: str, folder: Path) -> tuple[Path, torch.Tensor]:
    """The folder of an export without a block, and the logits that it must have."""
    levels = RTN(bits=(8, 4), group_size=16, symmetric=True)
    searched = compressed(lm, levels, folder / "levels", drops="block")
    dtype = "float32" if format_name == "hf" else "auto"
    write_checkpoints(Export(formats=[format_name], dtype=dtype), searched, tokens=TOKENS, facts={}, folder=folder)
    with searched.applied() as model:
        return folder / format_name, plain.logits(model, TOKENS)


@needs_transformers4
@pytest.mark.slow
@pytest.mark.parametrize("kind", SCALED)
def test_transformers_4_computes_the_logits_of_every_family(kind, tmp_path):
    models = {family: model_with(config_with_rope(family, kind), family) for family in ALL_FAMILIES}
    lms = {family: wrap_model(model, tokenizer(), family) for family, model in models.items()}
    expected = dict(exported(lm, "hf", tmp_path / family) for family, lm in lms.items())
    compare_in_transformers4(expected, tmp_path, tolerance=1e-4)


@needs_transformers4
@pytest.mark.slow
def test_transformers_4_computes_the_logits_of_packed_levels(tmp_path):
    pytest.importorskip("compressed_tensors", reason="needs the package compressed-tensors")
    families = ("llama", "mistral", "phi3", "qwen2", "qwen3", "gemma2", "gemma3_text", "opt", "granite", "gemma3")
    expected = dict(exported(tiny(family), "compressed_tensors", tmp_path / family) for family in families)
    compare_in_transformers4(expected, tmp_path, tolerance=1e-2)  # embeddings in 16 bits
