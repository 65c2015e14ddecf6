"""Levels in I types, which ggml's library makes."""

from pathlib import Path

import pytest
import torch

from evopress.compressors.ggml_library import library_path, round_by_ggml
from evopress.compressors.gguf import GGUF
from evopress.export import Export, write_checkpoints
from evopress.imports import open_sources
from evopress.space.shapes import LayerShape
from evopress.weights.i_types import I_TYPES
from tests import ggml_library
from tests.exports import TOKENS, compressed
from tests.groups import group
from tests.tiny_models import wide_llama

pytest.importorskip("gguf")


@pytest.fixture
def library() -> Path:
    ggml_library.ggml_library()  # skips the test where there is none
    return library_path(str(ggml_library.ENGINE))


@pytest.mark.parametrize("name", I_TYPES)
def test_rounding_loses_less_the_more_bits_a_type_has(name, library):
    """For normal weights, no code of b bits leaves less than 4^−b of their energy."""
    weight = torch.randn(16, 512, generator=torch.Generator().manual_seed(0))
    rounded = round_by_ggml(weight, name, power=torch.ones(512), library=library)
    error = float(((rounded.dense() - weight) ** 2).mean())
    bits = 8 * I_TYPES[name].num_bytes / I_TYPES[name].num_weights
    assert 4**-bits < error < 3 * 4**-bits


def test_columns_with_stronger_inputs_are_rounded_better(library):
    weight = torch.randn(16, 512, generator=torch.Generator().manual_seed(0))
    power = torch.ones(512)
    power[::8] = 30
    plain, weighted = (
        round_by_ggml(weight, "IQ2_XS", power=each, library=library).dense() for each in (torch.ones(512), power)
    )
    errors = [float(((rounded - weight)[:, ::8] ** 2).sum()) for rounded in (plain, weighted)]
    assert errors[1] < 0.8 * errors[0]


def test_levels_have_the_errors_of_their_weights(library):
    compressor = GGUF(types=("Q8_0", "Q4_K", "IQ4_XS", "IQ2_XXS"), ggml_library=str(library))
    layers = group((16, 8), 256)
    solved = compressor.compress(layers)
    H = layers.hessian
    for weight, levels, errors in zip(layers.weights, solved.levels, solved.errors, strict=True):
        assert [level.type_name for level in levels] == ["Q8_0", "Q4_K", "IQ4_XS", "IQ2_XXS"]
        assert errors == sorted(errors)
        for level, error in zip(levels, errors, strict=True):
            change = level.dense() - weight
            share = float((change @ H * change).sum() / (weight @ H * weight).sum())
            assert error == pytest.approx(share, rel=1e-3)


@pytest.mark.slow
def test_a_file_holds_every_i_type(library, tmp_path):
    """Exporting reads the file back with transformers, and with the package gguf. It can be imported, too."""
    lm = wide_llama()
    compressor = GGUF(types=("Q8_0", *I_TYPES), ggml_library=str(library))
    searched = compressed(lm, compressor, tmp_path)
    verified = write_checkpoints(Export(formats=["gguf"]), searched, tokens=TOKENS, facts={}, folder=tmp_path)
    assert verified["gguf"]["files"]["types"].keys() >= I_TYPES.keys()
    (source,) = open_sources([str(tmp_path / "gguf")]).values()
    for layer in searched.levels:
        weight = searched.packed(layer)
        assert torch.equal(source.read(layer, weight.shape).dense(), weight.dense())


def test_without_the_library_the_types_are_refused_before_the_model_is_loaded(tmp_path):
    compressor = GGUF(types=("Q8_0", "IQ4_XS"), ggml_library=str(tmp_path))
    with pytest.raises(ValueError, match=r"does not contain it: set compress\.ggml_library to the folder"):
        compressor.levels(LayerShape("layer", 64, 256))
    compressor.levels(LayerShape("layer", 64, 64))  # too narrow for the type
