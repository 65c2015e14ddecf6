import pytest
import torch
from torch import Tensor

from evopress.compressors import sweep as sweep_module
from evopress.compressors.base import LayerGroup
from evopress.compressors.gptq import GPTQ
from evopress.compressors.inverse_factor import factor_inverse
from evopress.compressors.output_errors import relative_error
from evopress.compressors.rtn import RTN
from evopress.space.shapes import LayerShape
from evopress.weights.grids import Grid, fit_grid, max_codes
from evopress.weights.integer import QuantizedWeight
from tests import plain
from tests.groups import group, inputs, with_hessian

WIDTHS = (6, 5, 4, 3, 2)
TEXTBOOK = {"range": "minmax", "refit_scales": False}
"""The settings of the paper, but for the order."""


def codes(solved, layer=0) -> list[Tensor]:
    return [level.codes() for level in solved.levels[layer]]


def textbook_gptq(w: Tensor, H: Tensor, *, bits: int, group_size: int, order: list[int] | None = None) -> Tensor:
    """One row, in float64: eliminate one column after the other from the explicit inverse Hessian."""
    w, static = w.double().clone(), order is not None
    order = order or list(range(len(w)))
    Hinv = torch.linalg.inv(H.double() + 0.01 * H.double().diagonal().mean() * torch.eye(len(w), dtype=torch.float64))
    max_code = max_codes([bits], rows=1, device=w.device)

    def fitted(start: int) -> Grid:
        group = w[start : start + group_size, None]
        return fit_grid(group, max_code, symmetric=False, scale_dtype=torch.float16)

    grids = {start: fitted(start) for start in range(0, len(w), group_size)}
    result = torch.empty(len(w), dtype=torch.uint8)
    for j in order:
        start = j // group_size * group_size
        if j == start and not static:
            grids[start] = fitted(start)
        code = grids[start].encode(w[j : j + 1])
        result[j] = code
        error = (w[j] - grids[start].decode(code)[0]) / Hinv[j, j]
        w -= error * Hinv[j]
        Hinv = Hinv - torch.outer(Hinv[:, j], Hinv[j]) / Hinv[j, j]
    return result


@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_equals_the_textbook_elimination(act_order):
    layers = group((3, 2), 48, dtype=torch.float64)
    solved = GPTQ(bits=WIDTHS, group_size=16, act_order=act_order, **TEXTBOOK).compress(layers)
    order = layers.hessian.diagonal().argsort(descending=True).tolist() if act_order else None
    for layer, weight in enumerate(layers.weights):
        for level, bits in enumerate(WIDTHS):
            expected = [textbook_gptq(w, layers.hessian, bits=bits, group_size=16, order=order) for w in weight]
            assert torch.equal(solved.levels[layer][level].codes(), torch.stack(expected))


def test_gptq_equals_one_level_of_one_layer_at_a_time_row_major():
    layers = group((3, 2), 48, dtype=torch.float64)
    solved = GPTQ(bits=WIDTHS, group_size=16, act_order=False, **TEXTBOOK).compress(layers)
    for layer, weight in enumerate(layers.weights):
        for level, bits in enumerate(WIDTHS):
            expected = plain.gptq(weight, layers.hessian, bits=bits, group_size=16)
            torch.testing.assert_close(solved.levels[layer][level].dense(torch.float64), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("chosen", ["minmax", "mse"])
def test_gptq_equals_rounding_when_hessian_is_identity(chosen, symmetric, act_order):
    layers = with_hessian(group((5, 3), 64), torch.eye(64))
    settings = {"group_size": 16, "symmetric": symmetric, "range": chosen}
    solved = GPTQ(**settings, act_order=act_order, refit_scales=False).compress(layers)
    rounded = RTN(**settings).compress(layers)
    for layer in range(2):
        assert all(map(torch.equal, codes(solved, layer), codes(rounded, layer)))
        assert solved.errors[layer] == pytest.approx(rounded.errors[layer], rel=1e-4)


@pytest.mark.parametrize("lazy", [1, 7, 1000])
def test_how_late_columns_are_updated_does_not_change_the_result(lazy, monkeypatch):
    layers = group((6,), 96, dtype=torch.float64)
    expected = GPTQ(group_size=48).compress(layers)
    monkeypatch.setattr(sweep_module, "LAZY_COLUMNS", lazy)
    assert all(map(torch.equal, codes(GPTQ(group_size=48).compress(layers)), codes(expected)))


@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_loses_less_than_rounding_on_correlated_inputs(act_order):
    layers = group((32,), 64)
    solved = GPTQ(group_size=32, act_order=act_order).compress(layers)
    rounded = RTN(group_size=32).compress(layers)
    assert all(gptq < 0.7 * rtn for gptq, rtn in zip(solved.errors[0], rounded.errors[0], strict=True))


@pytest.mark.parametrize("act_order", [False, True])
def test_levels_layers_and_parts_solved_together_equal_each_alone(act_order, monkeypatch):
    layers = group((4, 6), 64, dtype=torch.float64)
    settings = {"group_size": 32, "act_order": act_order}
    together = GPTQ(bits=WIDTHS, **settings).compress(layers)
    for layer, (name, weight) in enumerate(zip(layers.names, layers.weights, strict=True)):
        for level, bits in enumerate(WIDTHS):
            alone = GPTQ(bits=(bits,), **settings).compress(LayerGroup((name,), (weight,), layers.hessian))
            assert torch.equal(alone.levels[0][0].dense(), together.levels[layer][level].dense())
            assert alone.errors[0][0] == pytest.approx(together.errors[layer][level], rel=1e-6)
    monkeypatch.setattr(sweep_module, "MAX_ELEMENTS", 2 * 10 * 64)
    in_parts = GPTQ(bits=WIDTHS, **settings).compress(layers)
    assert all(map(torch.equal, codes(in_parts, 1), codes(together, 1)))


@pytest.mark.parametrize("compressor", [GPTQ, RTN])
def test_levels_of_several_group_sizes_equal_those_of_each_size_alone(compressor):
    layers = group((32, 64), 96, dtype=torch.float64)
    together = compressor(bits=(2, 3), group_size=[32, 96, 16])
    solved = together.compress(layers)
    alone = {size: compressor(bits=(2, 3), group_size=size).compress(layers) for size in (16, 32, 96)}
    for layer, shape in enumerate(layers.shapes):
        levels = together.levels(shape)
        assert [level.label for level in levels] == ["3bit/16", "3bit/32", "3bit/96", "2bit/16", "2bit/32", "2bit/96"]
        assert [level.size_bytes for level in levels] == sorted((level.size_bytes for level in levels), reverse=True)
        for index, level in enumerate(levels):
            bits, size = (int(part) for part in level.label.split("bit/"))
            expected = alone[size]
            assert torch.equal(solved.levels[layer][index].dense(), expected.levels[layer][(3, 2).index(bits)].dense())
            assert solved.errors[layer][index] == pytest.approx(expected.errors[layer][(3, 2).index(bits)], rel=1e-6)
            stored = sum(tensor.nbytes for tensor in solved.levels[layer][index].tensors().values())
            assert stored == level.size_bytes


def test_several_group_sizes_must_divide_the_columns():
    assert GPTQ(group_size=[32]) == GPTQ(group_size=32)
    with pytest.raises(ValueError, match=r"lists 64, which does not divide the 96 inputs"):
        GPTQ(group_size=[32, 64]).levels(LayerShape("q", 4, 96))


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("tokens", [300, 20])
def test_errors_are_those_of_the_undamped_hessian(act_order, tokens):
    X = inputs(64, tokens)
    X[:, [3, 40]] = 0
    layers = group((8, 4), 64, X)
    solved = GPTQ(group_size=32, act_order=act_order).compress(layers)
    for layer, weight in enumerate(layers.weights):
        direct = [relative_error(level.dense() - weight, weight, H=layers.hessian) for level in solved.levels[layer]]
        assert solved.errors[layer] == pytest.approx(direct, rel=1e-2)


@pytest.mark.parametrize("symmetric", [False, True])
def test_levels_have_the_bytes_that_are_stored(symmetric):
    for compressor in (GPTQ(group_size=32, symmetric=symmetric), RTN(group_size=32, symmetric=symmetric)):
        layers = group((7, 33), 96)
        solved = compressor.compress(layers)
        for shape, weights in zip(layers.shapes, solved.levels, strict=True):
            levels = compressor.levels(shape)
            assert [level.label for level in levels] == ["6bit", "5bit", "4bit", "3bit", "2bit"]
            assert [level.cost for level in levels] == [bits * shape.num_weights for bits in WIDTHS]
            assert [level.size_bytes for level in levels] == [weight.size_bytes for weight in weights]


def test_dead_inputs_have_zero_weights_and_the_others_go_on():
    X = inputs(64)
    X[:, 5] = 0
    layers = group((8,), 64, X)
    solved = GPTQ(group_size=32).compress(layers)
    assert all(not level.dense()[:, 5].any() for level in solved.levels[0])
    assert solved.notes == ("layer0: 1 of 64 inputs were always zero; their weights are set to zero",)
    assert max(solved.errors[0][:4]) < 0.1


def test_an_input_that_was_never_active_is_rounded_and_noted():
    layers = with_hessian(group((4, 4), 64), torch.zeros(64, 64))
    solved = GPTQ(group_size=32).compress(layers)
    assert all(map(torch.equal, codes(solved), codes(RTN(group_size=32).compress(layers))))
    assert solved.notes[-1] == "layer0, layer1: rounded to nearest instead" and solved.errors[0] == [0.0] * 5


def test_enormous_and_tiny_weights_give_finite_results():
    layers = group((4,), 64)
    for factor in (1e30, 1e-30):
        scaled = LayerGroup(layers.names, (layers.weights[0] * factor,), layers.hessian)
        for level in GPTQ(group_size=32).compress(scaled).levels[0]:
            assert bool(level.dense().isfinite().all())


def test_inputs_that_are_not_finite_are_an_error():
    layers = with_hessian(group((4,), 64), torch.full((64, 64), float("nan")))
    with pytest.raises(ValueError, match="not finite"):
        GPTQ(group_size=32).compress(layers)


def test_weights_and_hessian_of_the_group_are_not_changed():
    layers = group((4,), 64)
    before = layers.weights[0].clone(), layers.hessian.clone()
    GPTQ(group_size=32, act_order=True).compress(layers)
    assert torch.equal(layers.weights[0], before[0]) and torch.equal(layers.hessian, before[1])


def test_sum_of_squared_errors_is_the_damped_loss():
    layers = group((8,), 64, dtype=torch.float64)
    W, weight = layers.weights[0].t().clone(), layers.weights[0]
    factor = factor_inverse(layers.hessian, damp=0.01)

    class Halver:
        def start_block(self, start, W):
            pass

        def compress_column(self, column, w):
            halved[:, column] = w / 2
            w.div_(2)

        def end_block(self):
            pass

    halved = torch.empty_like(weight)
    E = sweep_module.sweep(W, factor.U, columns=Halver(), block_size=32)
    change = halved - weight
    damped = layers.hessian + factor.absolute_damping * torch.eye(64, dtype=torch.float64)
    torch.testing.assert_close(E.square().sum(0), ((change @ damped) * change).sum(1))


def test_group_size_falls_to_one_that_divides_the_columns():
    weight = GPTQ().compress(group((2,), 96)).levels[0][0]
    assert isinstance(weight, QuantizedWeight) and weight.group_size == 32
    with pytest.raises(ValueError, match=r"compress\.group_size"):
        RTN().levels(LayerShape("odd", 4, 40))


@pytest.mark.parametrize(
    ("bits", "propagate", "level"), [((2, 3, 4), 3, 1), ((2, 4, 8), 3, 1), ((2,), 3, 0), ((8, 2, 6), 2, 2)]
)
def test_the_propagated_width_is_the_nearest_wider_one(bits, propagate, level):
    compressor = GPTQ(bits=bits, propagate_bits=propagate)
    assert compressor.propagate_level == level
    assert compressor.bits == tuple(sorted(bits, reverse=True)) and compressor.span == (min(bits), max(bits))
    several = GPTQ(bits=bits, propagate_bits=propagate, group_size=[64, 128])
    propagated = several.levels(LayerShape("q", 4, 128))[several.propagate_level]
    assert propagated.label == f"{compressor.bits[level]}bit/64"


@pytest.mark.parametrize(
    "wrong",
    [
        {"bits": []},
        {"bits": [3, 3]},
        {"bits": [1]},
        {"bits": [9]},
        {"group_size": 0},
        {"group_size": [64, 64]},
        {"x": 1},
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError):
        GPTQ(**wrong)
