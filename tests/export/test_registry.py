"""Formats are found by name, and one file from outside the package adds another."""

import json
import sys

import pytest
import torch

import evopress
from evopress.compressors.drop import Drop
from evopress.export import Export, UnsupportedExportError, check_export, register_format, write_checkpoints
from evopress.export.base import Format
from evopress.export.formats import DenseSafetensors, GGUFFile
from evopress.export.registry import chosen_formats, registered_formats
from evopress.space.settings import SpaceSettings
from tests.exports import TOKENS, searched_drops
from tests.tiny_models import tiny

FORMAT_FROM_OUTSIDE = '''
from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from evopress.export import register_format
from evopress.export.config_files import config_without_dropped_blocks, write_config_files
from evopress.export.formats import DenseSafetensors


@register_format
class Prefixed(DenseSafetensors):
    """Every name begins with "mine.", so that no other format can read the file."""

    name = "prefixed"
    title = "safetensors with prefixed names"

    @classmethod
    def recognizes(cls, folder, config):
        return config.get("layout") == "prefixed"

    def predicted_names(self, searched):
        return [f"mine.{name}" for name in super().predicted_names(searched)]

    def write(self, searched, folder, *, dtype):
        state = searched.renumbered(searched.dense_state(dtype))
        save_file({f"mine.{name}": tensor for name, tensor in state.items()}, folder / "mine.safetensors")
        config = config_without_dropped_blocks(searched, dtype)
        config.layout = "prefixed"
        write_config_files(config, searched.lm, folder)

    def load(self, folder, dtype, *, attention=None):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(folder), dtype=dtype, attn_implementation=attention
        )
        state = load_file(folder / "mine.safetensors")
        model.load_state_dict({name.removeprefix("mine."): tensor for name, tensor in state.items()})
        return model
'''


@pytest.fixture
def known_formats(monkeypatch) -> None:
    """Formats that a test registers are unknown afterwards."""
    formats = {cls.name: cls for cls in registered_formats()}
    monkeypatch.setattr("evopress.export.registry._FORMATS", formats)


def test_a_file_from_outside_the_package_adds_a_format(known_formats, tmp_path, monkeypatch):
    (tmp_path / "format_from_outside.py").write_text(FORMAT_FROM_OUTSIDE)
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = Export(formats=["format_from_outside.Prefixed"], dtype="float32")
    searched = searched_drops(tiny("llama"), {(1, "attention"), (1, "mlp")})
    check_export(settings, Drop(granularity="block"), space=SpaceSettings())
    written = write_checkpoints(settings, searched, tokens=TOKENS, facts={}, folder=tmp_path / "checkpoints")
    folder = tmp_path / "checkpoints" / "prefixed"
    assert written["prefixed"]["max_logit_difference"] < 1e-5
    assert "safetensors with prefixed names" in (folder / "README.md").read_text()
    assert json.loads((folder / "config.json").read_text())["layout"] == "prefixed"
    with searched.applied() as model, torch.no_grad():
        expected = model(input_ids=TOKENS).logits
        torch.testing.assert_close(evopress.load(folder)(input_ids=TOKENS).logits, expected, rtol=1e-5, atol=1e-5)
    assert [cls.name for cls in registered_formats()][-1] == "prefixed"
    del sys.modules["format_from_outside"]


def test_a_format_has_the_settings_that_concern_it():
    gguf, dense = chosen_formats(Export(formats=["gguf", "hf", "gguf"], pre_tokenizer="llama-bpe", embeddings="Q8_0"))
    assert isinstance(gguf, GGUFFile)
    assert (gguf.pre_tokenizer, gguf.embeddings) == ("llama-bpe", "Q8_0")
    assert isinstance(dense, DenseSafetensors)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ggml", r"export\.formats contains 'ggml', which is not a format: use some of .*hf.*, or the import path"),
        ("no_such_package.Format", r"export\.formats contains 'no_such_package\.Format', which cannot be imported"),
        ("evopress.export.formats.Missing", "which cannot be imported"),
        ("evopress.export.Export", "which is not a subclass of Format"),
    ],
)
def test_an_unknown_format_is_refused_at_start_up(name, message):
    with pytest.raises(UnsupportedExportError, match=message):
        check_export(Export(formats=[name]), Drop(), space=SpaceSettings())


def test_two_formats_cannot_have_one_name(known_formats):
    class Other(DenseSafetensors):
        name = "gguf"

    with pytest.raises(ValueError, match=r"GGUFFile already has the format name 'gguf': choose another name"):
        register_format(Other)
    assert register_format(GGUFFile) is GGUFFile
    assert issubclass(GGUFFile, Format)
