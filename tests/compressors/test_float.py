"""Levels in number formats: rounding, sizes, and errors."""

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load, save

from evopress.compressors.base import LayerGroup
from evopress.compressors.float import Float
from evopress.space.shapes import LayerShape
from evopress.weights.number_formats import ScaleSettings, number_formats, per_column
from tests.groups import group, inputs, with_hessian

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
        stored = [load(save(weight.tensors())) for weight in weights]
        assert [sum(tensor.nbytes for tensor in tensors.values()) for tensors in stored] == [
            weight.size_bytes for weight in weights
        ]


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
    compressed = Float().compress(group((8,), 32, torch.zeros(4, 32)))
    assert all(level.dense().any() for level in compressed.levels[0])
    assert compressed.notes == ("layer0: all calibration inputs were zero", "layer0: rounded to nearest instead")


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("name", [name for name in ALL if name != "bf16"])
def test_gptq_rounds_to_the_nearest_numbers_if_inputs_are_independent_and_to_better_ones_if_not(name, act_order):
    settings = {"levels": (name,), "act_order": act_order}
    layers = group((24, 8), 192)
    independent = with_hessian(layers, torch.diag(torch.linspace(0.5, 2, 192)))
    for weights in zip(
        *(Float(**settings, rounding=rounding).compress(independent).levels for rounding in ("gptq", "nearest")),
        strict=True,
    ):
        assert torch.equal(weights[0][0].dense(), weights[1][0].dense())
    swept, nearest = (Float(**settings, rounding=rounding).compress(layers) for rounding in ("gptq", "nearest"))
    assert all(a[0] < 0.8 * b[0] for a, b in zip(swept.errors, nearest.errors, strict=True))


@pytest.mark.parametrize("name", [name for name in ALL if name != "bf16"])
def test_a_sweep_gives_the_elements_of_the_plain_loop(name):
    """Algorithm 1 of GPTQ, column by column, with the inverse Hessian and in float64."""
    layers = group((6,), 64, dtype=torch.float64)
    (weight,), H = layers.weights, layers.hessian
    (level,) = Float(levels=(name,), act_order=False, four_over_six=False).compress(layers).levels[0]
    (scales,) = number_formats()[name].scales([weight], ScaleSettings(torch.bfloat16, H.diagonal()))
    by_column = per_column(scales.values, number_formats()[name].group_size, cols=64)
    damped = H + 0.01 * H.diagonal().mean() * torch.eye(64, dtype=torch.float64)
    U = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    W, rounded = weight.clone(), torch.empty_like(weight)
    for j in range(64):
        rounded[:, j] = number_formats()[name].round(W[:, j] / by_column[:, j]) * by_column[:, j]
        W -= torch.outer((W[:, j] - rounded[:, j]) / U[j, j], U[j])
    assert (level.dense() != rounded.float()).float().mean() < 0.01  # a tie in rounding may fall either way
    assert torch.equal(level.dense()[:, :8], rounded.float()[:, :8])


def test_inputs_that_were_always_zero_lose_their_weights_except_in_bfloat16():
    X = inputs(32)
    X[:, 3] = 0
    layers = group((8,), 32, X, dtype=torch.float32)
    compressed = Float().compress(with_hessian(layers, layers.hessian.float()))
    assert compressed.notes == ("layer0: 1 of 32 inputs were always zero; their weights are set to zero",)
    bf16, *lossy = compressed.levels[0]
    assert torch.equal(bf16.dense(), layers.weights[0].bfloat16().float())
    assert not any(level.dense()[:, 3].any() for level in lossy)


def test_a_row_is_rounded_alike_alone_and_with_the_other_layers_that_read_its_input():
    """Except in NVFP4, where all layers have one divisor."""
    together = Float(levels=("fp8", "int8", "mxfp4")).compress(group((16, 8), 64))
    first = group((16, 8), 64)
    alone = Float(levels=("fp8", "int8", "mxfp4")).compress(LayerGroup(("layer1",), first.weights[1:], first.hessian))
    for one, other in zip(together.levels[1], alone.levels[0], strict=True):
        assert torch.equal(one.dense(), other.dense())
