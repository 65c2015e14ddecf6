from fractions import Fraction
from math import ceil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evopress.compressors import sweep as sweep_module
from evopress.compressors.base import LayerGroup
from evopress.compressors.block_pruner import smallest
from evopress.compressors.magnitude import Magnitude
from evopress.compressors.output_errors import relative_error
from evopress.compressors.sparsegpt import SparseGPT
from evopress.compressors.wanda import Wanda
from evopress.space.budget import Budget
from evopress.space.shapes import LayerShape
from evopress.space.units import Space, Unit
from tests import plain
from tests.groups import group, inputs, with_hessian

EXACT = {"value_dtype": "float32"}


def kept(solved, layer=0) -> list[Tensor]:
    return [level.kept() for level in solved.levels[layer]]


def textbook_sparsegpt(W: Tensor, H: Tensor, *, zeros: int, block_size: int) -> Tensor:
    """One layer, in float64: eliminate one column after the other from the explicit inverse Hessian."""
    W, (rows, cols) = W.double().clone(), W.shape
    Hinv = torch.linalg.inv(H.double() + 0.01 * H.double().diagonal().mean() * torch.eye(cols, dtype=torch.float64))
    for start in range(0, cols, block_size):
        stop = min(start + block_size, cols)
        pivots, later = [], Hinv
        for j in range(start, stop):
            pivots.append(later[j, j])
            later = later - torch.outer(later[:, j], later[j]) / later[j, j]
        scores = W[:, start:stop].square() / torch.stack(pivots)
        share = zeros * stop // cols - zeros * start // cols
        pruned = torch.zeros(scores.numel(), dtype=torch.bool)
        pruned[scores.t().flatten().argsort(stable=True)[:share]] = True
        for j, mask in zip(range(start, stop), pruned.view(stop - start, rows), strict=True):
            W -= torch.outer(W[:, j] * mask / Hinv[j, j], Hinv[j])
            W[mask, j] = 0
            Hinv = Hinv - torch.outer(Hinv[:, j], Hinv[j]) / Hinv[j, j]
    return W


def test_sparsegpt_equals_the_textbook_elimination():
    layers = group((6, 3), 40, dtype=torch.float64)
    compressor = SparseGPT(base=0.5, num_levels=2, step=20, block_size=16, **EXACT)
    solved = compressor.compress(layers)
    for shape, weight, levels in zip(layers.shapes, layers.weights, solved.levels, strict=True):
        for zeros, level in zip(compressor.num_zeros(shape), levels, strict=True):
            expected = textbook_sparsegpt(weight, layers.hessian, zeros=zeros, block_size=16)
            torch.testing.assert_close(level.dense(torch.float64), expected, rtol=1e-5, atol=1e-5)


def test_sparsegpt_equals_one_level_of_one_layer_at_a_time_row_major():
    layers = group((6, 3), 40, dtype=torch.float64)
    compressor = SparseGPT(base=0.5, num_levels=2, step=20, block_size=16)
    solved = compressor.compress(layers)
    for shape, weight, levels in zip(layers.shapes, layers.weights, solved.levels, strict=True):
        for zeros, level in zip(compressor.num_zeros(shape), levels, strict=True):
            expected = plain.sparsegpt(weight, layers.hessian, zeros=zeros, block_size=16, value_dtype=torch.bfloat16)
            assert torch.equal(level.kept(), expected != 0)
            torch.testing.assert_close(level.dense(torch.float64), expected, rtol=2**-7, atol=1e-6)  # a bfloat16 step


def test_sparsegpt_in_one_block_equals_magnitude_when_hessian_is_identity():
    layers = with_hessian(group((5, 3), 48), torch.eye(48))
    settings = {"num_levels": 3, "step": 20}
    pruned = Magnitude(**settings).compress(layers)
    solved = SparseGPT(block_size=48, **settings).compress(layers)
    for layer in range(2):
        assert all(map(torch.equal, kept(solved, layer), kept(pruned, layer)))
        for a, b in zip(solved.levels[layer], pruned.levels[layer], strict=True):
            assert torch.equal(a.dense(), b.dense())


def test_sparsegpt_in_several_blocks_prunes_each_by_magnitude_when_hessian_is_identity():
    layers = with_hessian(group((5,), 48), torch.eye(48))
    solved = SparseGPT(block_size=16, num_levels=1, step=30).compress(layers)
    for start in range(0, 48, 16):
        part = LayerGroup(layers.names, (layers.weights[0][:, start : start + 16],))
        pruned = Magnitude(num_levels=1, step=10).compress(part)
        assert all(torch.equal(a[:, start : start + 16], b) for a, b in zip(kept(solved), kept(pruned), strict=True))


@pytest.mark.parametrize("compressor", [SparseGPT, Wanda])
def test_methods_that_see_inputs_lose_less_than_magnitude(compressor):
    X = inputs(64) * torch.logspace(0, 1, 64, dtype=torch.float64)
    layers = group((32,), 64, X)
    settings = {"num_levels": 2, "step": 200}
    better, magnitude = compressor(**settings).compress(layers), Magnitude(**settings).compress(layers)
    assert all(a < 0.8 * b for a, b in zip(better.errors[0], magnitude.errors[0], strict=True))


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from([Magnitude, Wanda, SparseGPT]),
    st.lists(st.integers(1, 9), min_size=1, max_size=3),
    st.integers(1, 50),
    st.floats(0, 1),
    st.integers(1, 4),
    st.integers(1, 60),
)
def test_every_level_has_exactly_its_number_of_zeros(compressor, rows, cols, base, num_levels, step):
    extra = {"block_size": 7} if compressor is SparseGPT else {}
    compressor = compressor(base=base, num_levels=num_levels, step=step, **extra)
    layers = group(tuple(rows), cols)
    for shape, weights in zip(layers.shapes, compressor.compress(layers).levels, strict=True):
        levels = compressor.levels(shape)
        assert [level.cost for level in levels] == [int(weight.kept().sum()) for weight in weights]
        assert [level.size_bytes for level in levels] == [weight.size_bytes for weight in weights]


@settings(deadline=None)
@given(st.integers(1, 500), st.integers(1, 500), st.floats(0, 1), st.integers(1, 8), st.integers(1, 10**5))
def test_levels_are_equal_steps_of_weights_around_the_base(rows, cols, base, num_levels, step):
    N = rows * cols
    compressor = Magnitude(base=base, num_levels=num_levels, step=step)
    zeros = compressor.num_zeros(LayerShape("layer", rows, cols))
    assert num_levels + 1 <= len(zeros) <= 2 * num_levels + 1
    for level, count in enumerate(zeros):
        wanted = ceil(Fraction(repr(base)) * N) + (level - num_levels) * step
        assert count == min(max(wanted, 0), N)


def test_the_base_level_meets_the_budget_and_leaves_nothing_over():
    budget, compressor = Budget(metric="sparsity", target=0.37), Magnitude(base=0.37, step=10)
    shapes = [LayerShape("a", 7, 13), LayerShape("b", 11, 17)]
    units = tuple(
        Unit(
            name=s.name,
            blocks=(0,),
            kind=s.name,
            layers=(s.name,),
            num_weights=s.num_weights,
            levels=tuple(compressor.levels(s)),
        )
        for s in shapes
    )
    space = Space(units)
    (cap,) = budget.caps(space)
    assert cap.slack(space, space.uniform(compressor.propagate_level)) == 0


def test_equal_scores_go_by_column_then_row():
    layers = with_hessian(group((2,), 4), torch.eye(4))
    layers = LayerGroup(layers.names, (torch.ones(2, 4),), layers.hessian)
    middle = SparseGPT(num_levels=1, step=1).compress(layers).levels[0][0].kept()  # 3 of 8 pruned
    assert middle.tolist() == [[False, False, True, True], [False, True, True, True]]


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=4), st.data())
def test_the_smallest_are_the_first_of_a_stable_sort(rows, data):
    counts = [data.draw(st.integers(0, 6)) for _ in rows]
    masks = smallest(torch.tensor(rows, dtype=torch.float32), counts)
    for row, count, mask in zip(rows, counts, masks, strict=True):
        expected = sorted(range(6), key=row.__getitem__)[:count]
        assert mask.nonzero().flatten().tolist() == sorted(expected)


@pytest.mark.parametrize("lazy", [1, 5, 1000])
def test_how_late_columns_are_updated_does_not_change_the_result(lazy, monkeypatch):
    layers = group((6,), 64, dtype=torch.float64)
    compressor = SparseGPT(num_levels=2, step=30, block_size=32, **EXACT)
    expected = compressor.compress(layers).levels[0]
    monkeypatch.setattr(sweep_module, "LAZY_COLUMNS", lazy)
    for a, b in zip(compressor.compress(layers).levels[0], expected, strict=True):
        torch.testing.assert_close(a.dense(), b.dense(), rtol=1e-5, atol=1e-5)


def test_layers_and_parts_solved_together_equal_each_alone(monkeypatch):
    layers = group((6, 2), 64, dtype=torch.float64)
    compressor = SparseGPT(num_levels=2, step=70, block_size=32, **EXACT)
    together = compressor.compress(layers)
    assert len(together.levels[0]) != len(together.levels[1])
    monkeypatch.setattr(sweep_module, "MAX_ELEMENTS", 1)
    for layer, (name, weight) in enumerate(zip(layers.names, layers.weights, strict=True)):
        alone = compressor.compress(LayerGroup((name,), (weight,), layers.hessian))
        assert alone.errors[0] == pytest.approx(together.errors[layer], rel=1e-3, abs=1e-6)
        for a, b in zip(alone.levels[0], together.levels[layer], strict=True):
            torch.testing.assert_close(a.dense(), b.dense(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tokens", [300, 20])
def test_errors_are_those_of_the_undamped_hessian(tokens):
    X = inputs(64, tokens)
    X[:, [3, 40]] = 0
    layers = group((8, 4), 64, X)
    solved = SparseGPT(num_levels=2, step=50).compress(layers)
    for layer, weight in enumerate(layers.weights):
        direct = [relative_error(level.dense() - weight, weight, H=layers.hessian) for level in solved.levels[layer]]
        assert solved.errors[layer] == pytest.approx(direct, rel=2e-2)
    assert "2 of 64" in solved.notes[0]


def test_an_input_that_was_never_active_is_pruned_by_magnitude_and_noted():
    layers = with_hessian(group((4,), 64), torch.zeros(64, 64))
    solved = SparseGPT(step=10).compress(layers)
    assert all(map(torch.equal, kept(solved), kept(Magnitude(step=10).compress(layers))))
    assert solved.notes[-1] == "layer0: pruned by magnitude instead"


def test_the_default_step_follows_the_hidden_size():
    assert SparseGPT(base=0.75, num_levels=8).for_hidden_size(4096).step == int(0.5 * 0.25 / 8 * 4096**2)
    assert SparseGPT(step=5).for_hidden_size(4096).step == 5
    assert SparseGPT(base=0.0).for_hidden_size(4096).step == 1
    with pytest.raises(ValueError, match=r"compress\.step"):
        SparseGPT().levels(LayerShape("layer", 4, 4))


@pytest.mark.parametrize("wrong", [{"base": 1.1}, {"num_levels": 0}, {"step": 0}, {"value_dtype": "int8"}, {"x": 1}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError):
        SparseGPT(**wrong)
