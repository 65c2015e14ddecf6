"""Where a model came from: its hub id, and the small files that were published with it."""

import logging
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from evopress.models.loading import load_model, wrap_model
from evopress.models.origin import Origin, origin_in_memory
from evopress.models.source import ModelSource
from tests.hub_server import StandInHub, stand_in_hub
from tests.tiny_models import random_model, save_tiny, tokenizer

SMALL = {
    "README.md": "---\nlicense: mit\n---\n",
    "LICENSE.txt": "You may.",
    "tokenizer.model": "sentencepiece",
    "additional_chat_templates/tool_use.jinja": "{{ tools }}",
}
LARGE = {"optimizer.bin": "state", "original/consolidated.00.pth": "weights", "modeling_tiny.py": "print()"}


def published(folder: Path) -> dict[str, bytes]:
    """A model with what people publish next to it."""
    save_tiny("llama", folder)
    for name, text in {**SMALL, **LARGE}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def source(path: str, **changes) -> ModelSource:
    return ModelSource(**{"name": "tiny", "path": path, "dtype": "float32", "device": "cpu", **changes})


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with stand_in_hub(monkeypatch, tmp_path / "cache") as server:
        server.repositories["lab/base"] = published(tmp_path / "published")
        yield server


def test_a_model_of_the_hub_has_its_id_and_small_files(hub: StandInHub, tmp_path):
    origin = load_model(source("lab/base"), tmp_path).origin
    assert origin.hub_id == "lab/base"
    assert origin.card.read_text() == SMALL["README.md"]
    assert origin.model_files.keys() == {"LICENSE.txt"}
    assert origin.tokenizer_files.keys() == {
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "additional_chat_templates/tool_use.jinja",
    }
    downloaded = {path.name for path in origin.model_folder.rglob("*")}
    assert not downloaded & {Path(name).name for name in LARGE}


def test_without_a_network_a_model_has_the_files_that_the_cache_has(hub: StandInHub, tmp_path, monkeypatch):
    load_model(source("lab/base"), tmp_path)
    snapshot = next((tmp_path / "cache").rglob("snapshots/*"))
    (snapshot / "README.md").unlink()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    origin = load_model(source("lab/base"), tmp_path).origin
    assert origin.hub_id == "lab/base" and origin.card is None
    assert origin.model_files.keys() == {"LICENSE.txt"}


def test_a_model_that_transformers_took_from_the_hub_has_its_id(hub: StandInHub):
    assert origin_in_memory(AutoModelForCausalLM.from_pretrained("lab/base")).hub_id == "lab/base"


def test_a_local_model_has_no_hub_id_but_its_files(tmp_path):
    published(tmp_path / "published")
    origin = load_model(source(str(tmp_path / "published")), tmp_path).origin
    assert origin.hub_id is None
    assert origin.tokenizer_files["tokenizer.model"] == tmp_path / "published" / "tokenizer.model"
    assert origin_in_memory(AutoModelForCausalLM.from_pretrained(tmp_path / "published")) == Origin()


def test_a_model_that_was_made_in_memory_has_no_origin():
    assert wrap_model(random_model("llama"), tokenizer(), "tiny").origin == Origin()


def test_a_tokenizer_of_another_folder_has_the_files_of_that_folder(tmp_path):
    published(tmp_path / "published")
    tokenizer().save_pretrained(tmp_path / "other")
    settings = source(str(tmp_path / "published"), tokenizer=str(tmp_path / "other"))
    origin = load_model(settings, tmp_path).origin
    assert origin.tokenizer_files.keys() == {"tokenizer.json", "tokenizer_config.json"}
    assert origin.model_files.keys() == {"LICENSE.txt"}


def test_the_identity_of_an_origin_follows_its_files(tmp_path):
    published(tmp_path / "published")
    origin = Origin(model_folder=tmp_path / "published", tokenizer_folder=tmp_path / "published")
    identities = [origin.identity]
    for name in ("README.md", "LICENSE.txt", "tokenizer.model"):
        (tmp_path / "published" / name).write_text("changed")
        identities.append(origin.identity)
    (tmp_path / "published" / "optimizer.bin").write_text("changed")
    assert len({str(identity) for identity in [*identities, origin.identity]}) == 4


@pytest.mark.counts("hostile files")
@pytest.mark.parametrize("name", ["LICENSE", "README.md", "tokenizer.model"])
def test_a_link_out_of_the_folder_is_not_followed(name, tmp_path, caplog):
    (tmp_path / "token").write_text("hf_secret")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "merges.txt").write_text("")
    (folder / "vocab.txt").symlink_to(folder / "merges.txt")
    (folder / name).symlink_to(tmp_path / "token")
    origin = Origin(model_folder=folder, tokenizer_folder=folder)
    with caplog.at_level(logging.WARNING):
        assert name not in {**origin.model_files, **origin.tokenizer_files} and origin.card is None
    assert "vocab.txt" in origin.tokenizer_files
    assert f"{folder / name} leads out of its folder" in caplog.text
