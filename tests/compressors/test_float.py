"""Levels in number formats: rounding, sizes, and errors."""

import pytest
import torch
from pydantic import ValidationError

from evopress.compressors.float import Float
from evopress.space.shapes import LayerShape
from evopress.weights.number_formats import number_formats
from tests.groups import group

ALL = tuple(number_formats())


def test_levels_are_ordered_by_size_whatever_the_order_in_the_settings():
    names = [level.label for level in Float(levels=ALL).levels(LayerShape("layer", 256, 256))]
    assert names == [level.label for level in Float(levels=ALL[::-1]).levels(LayerShape("layer", 256, 256))]
    levels = Float(levels=ALL).levels(LayerShape("layer", 256, 256))
    assert [level.cost for level in levels] == sorted((level.cost for level in levels), reverse=True)


def test_sizes_are_those_of_the_stored_weights_and_costs_are_their_bits():
    layers = group((128, 24), 256)
    compressed = Float(levels=ALL).compress(layers)
    for shape, weights in zip(layers.shapes, compressed.levels, strict=True):
        levels = Float(levels=ALL).levels(shape)
        assert [level.size_bytes for level in levels] == [weight.size_bytes for weight in weights]
        assert [level.cost for level in levels] == [8 * level.size_bytes for level in levels]


def test_errors_are_the_share_of_output_energy_lost_and_grow_as_levels_shrink():
    layers = group((32,), 128)
    solved = Float().compress(layers)
    whole = (layers.weights[0] @ layers.hessian * layers.weights[0]).sum()
    for level, error in zip(solved.levels[0], solved.errors[0], strict=True):
        change = level.dense() - layers.weights[0]
        assert error == pytest.approx(float((change @ layers.hessian * change).sum() / whole), rel=1e-2)
    bf16, *eight_bits, nvfp4 = solved.errors[0]
    assert bf16 < min(eight_bits) and max(eight_bits) < nvfp4


def test_a_layer_has_only_the_levels_that_its_inputs_fit():
    compressor = Float(levels=("nvfp4", "fp8"), propagate_format="nvfp4")
    assert [level.label for level in compressor.levels(LayerShape("layer", 8, 24))] == ["fp8"]
    assert compressor.propagate_level_of(LayerShape("layer", 8, 24)) == 0
    assert compressor.propagate_level_of(LayerShape("layer", 8, 32)) == 1
    (levels,) = compressor.compress(group((8,), 24)).levels
    assert len(levels) == 1
    with pytest.raises(ValueError, match=r"24 inputs, which fit none of compress.levels=\['nvfp4'\]: add fp8"):
        Float(levels=("nvfp4",)).levels(LayerShape("layer", 8, 24))


@pytest.mark.parametrize("levels", [(), ("fp8", "fp8"), ("fp9",)])
def test_levels_are_different_known_formats(levels):
    with pytest.raises(ValidationError, match="must be different formats out of bf16, fp8"):
        Float(levels=levels)


def test_weights_without_inputs_are_rounded_too():
    layers = group((8,), 32, torch.zeros(4, 32))
    assert all(torch.isfinite(level.dense()).all() for level in Float().compress(layers).levels[0])
