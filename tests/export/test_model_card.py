"""The model card of a checkpoint: what the hub reads from it, and the commands that load the checkpoint."""

import re
from pathlib import Path

import pytest
import transformers
import yaml
from huggingface_hub import ModelCard

from evopress.compressors.gguf import GGUF
from evopress.compressors.rtn import RTN
from evopress.compressors.sparsegpt import SparseGPT
from evopress.export import Export, SearchedModel, write_checkpoints
from evopress.export.older_names import TESTED_VERSION
from evopress.models.origin import Origin
from tests.exports import TOKENS, compressed, searched_drops, with_origin
from tests.tiny_models import tiny

CARD = """---
license: other
license_name: some-licence
license_link: LICENSE
language: [en, de]
extra_gated_prompt: Agree to this.
tags: [chat]
---
# The base model
"""
ROUNDED = RTN(bits=(8, 4), group_size=32, symmetric=True)


def origin(folder: Path, card: str | None = CARD) -> Origin:
    """A model of the hub whose files are in `folder`."""
    folder.mkdir()
    if card is not None:
        (folder / "README.md").write_text(card)
    (folder / "LICENSE").write_text("You may.")
    return Origin(hub_id="lab/base", model_folder=folder)


def card_of(settings: Export, searched: SearchedModel, folder: Path) -> str:
    """The model card of the one format of the settings."""
    (name,) = settings.formats
    write_checkpoints(settings, searched, tokens=TOKENS, facts={"model": "mine", "compress": "rtn"}, folder=folder)
    return (folder / name / "README.md").read_text()


def header(card: str) -> dict:
    return ModelCard(card, ignore_metadata_errors=False).data.to_dict()


def commands(card: str) -> list[list[str]]:
    """The lines of every listing."""
    return [listing.splitlines() for listing in re.findall(r"```sh\n(.*?)\n```", card, re.DOTALL)]


def test_a_card_names_the_base_model_and_inherits_its_licence(tmp_path):
    searched = with_origin(compressed(tiny("llama"), ROUNDED, tmp_path), origin(tmp_path / "base"))
    assert header(card_of(Export(formats=["hf"]), searched, tmp_path)) == {
        "base_model": "lab/base",
        "base_model_relation": "quantized",
        "license": "other",
        "license_name": "some-licence",
        "license_link": "LICENSE",
        "language": ["en", "de"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["evopress", "rtn"],
    }
    assert (tmp_path / "hf" / "LICENSE").read_text() == "You may."


def test_a_model_that_is_only_pruned_is_not_called_quantised(tmp_path):
    searched = searched_drops(tiny("llama"), {(1, "attention"), (1, "mlp")})
    sparse = compressed(tiny("llama"), SparseGPT(base=0.5, num_levels=2), tmp_path / "levels")
    base = origin(tmp_path / "base")
    for pruned in (with_origin(searched, base), with_origin(sparse, base)):
        assert header(card_of(Export(formats=["hf"]), pruned, tmp_path))["base_model_relation"] == "finetune"


def test_the_card_of_a_local_model_says_where_its_base_model_belongs(tmp_path):
    searched = compressed(tiny("llama"), ROUNDED, tmp_path)
    card = card_of(Export(formats=["hf"]), searched, tmp_path)
    values = header(card)
    assert not values.keys() & {"base_model", "base_model_relation", "license"}
    (line,) = (line for line in card.splitlines() if "base_model" in line)
    assert line.startswith("# ") and yaml.safe_load(line.removeprefix("# ")).keys() == {"base_model"}


@pytest.mark.parametrize(
    "card", [None, "no header", "---\nlicense: [\n---\n", "---\n- a\n---\n", "---\nlicense: 3\n---\n"]
)
def test_a_card_without_a_readable_licence_gives_none(card, tmp_path):
    searched = with_origin(compressed(tiny("llama"), ROUNDED, tmp_path), origin(tmp_path / "base", card))
    values = header(card_of(Export(formats=["hf"]), searched, tmp_path))
    assert "license" not in values and values["base_model"] == "lab/base"


def test_a_model_that_takes_images_is_found_as_one(tmp_path):
    searched = compressed(tiny("gemma3"), ROUNDED, tmp_path)
    assert header(card_of(Export(formats=["hf"]), searched, tmp_path))["pipeline_tag"] == "image-text-to-text"


@pytest.mark.parametrize(
    ("name", "compressor", "library", "tag"),
    [
        ("compressed_tensors", ROUNDED, "transformers", "compressed-tensors"),
        ("gguf", GGUF(types=("Q8_0", "Q4_0")), "gguf", "gguf"),
    ],
)
def test_the_hub_finds_packed_formats_by_their_library_and_tag(name, compressor, library, tag, tmp_path):
    pytest.importorskip(name, reason=f"needs the package {name}")
    values = header(card_of(Export(formats=[name]), compressed(tiny("llama"), compressor, tmp_path), tmp_path))
    assert values["library_name"] == library and tag in values["tags"]


def test_a_card_has_the_commands_for_its_folder_and_for_the_hub(tmp_path):
    card = card_of(Export(formats=["hf"]), compressed(tiny("llama"), ROUNDED, tmp_path), tmp_path)
    local, on_hub = commands(card)
    assert any(f"from_pretrained('{tmp_path / 'hf'}')" in line for line in local)
    assert [line.replace(str(tmp_path / "hf"), "ORG/NAME") for line in local] == on_hub
    assert f"`hf upload ORG/NAME {tmp_path / 'hf'}`" in card


def test_a_card_that_is_uploaded_names_the_repository_and_no_folder_of_this_machine(tmp_path):
    settings = Export(formats=["hf"], push_to_hub="lab/small")
    card = card_of(settings, compressed(tiny("llama"), ROUNDED, tmp_path), tmp_path)
    (on_hub,) = commands(card)
    assert any("from_pretrained('lab/small')" in line for line in on_hub)
    assert str(tmp_path) not in card


def test_a_card_says_in_which_releases_of_transformers_it_was_read(tmp_path):
    card = card_of(Export(formats=["hf"]), compressed(tiny("llama"), ROUNDED, tmp_path), tmp_path)
    assert transformers.__version__ in card and TESTED_VERSION in card


def test_a_card_for_vllm_says_that_the_kv_cache_is_left_to_the_user(tmp_path):
    pytest.importorskip("compressed_tensors")
    for engine, is_said in (("vllm", True), ("transformers", False)):
        searched = compressed(tiny("llama"), ROUNDED, tmp_path / engine, tie="engine")
        card = card_of(Export(formats=["compressed_tensors"], engine=engine), searched, tmp_path / engine)
        assert ("--kv-cache-dtype" in card) is is_said
