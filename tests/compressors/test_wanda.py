import torch

from evopress.compressors.magnitude import Magnitude, ranks
from evopress.compressors.wanda import Wanda
from tests.groups import group, with_hessian


def test_wanda_removes_the_smallest_products_of_weight_and_input_in_every_row():
    layers = group((6, 4), 32)
    solved = Wanda(base=0.5, num_levels=1, step=12).compress(layers)
    norms = layers.hessian.diagonal().sqrt()
    for weight, levels in zip(layers.weights, solved.levels, strict=True):
        kept = levels[1].kept()
        assert (kept.sum(1) == 16).all()
        scores = weight.abs() * norms
        assert (scores.masked_fill(~kept, torch.inf).amin(1) >= scores.masked_fill(kept, 0).amax(1)).all()


def test_rows_differ_by_one_weight_at_most():
    layers = group((7,), 31)
    for level in Wanda(base=0.4, num_levels=2, step=17).compress(layers).levels[0]:
        counts = level.kept().sum(1)
        assert counts.max() - counts.min() <= 1


def test_wanda_with_equal_inputs_is_magnitude_within_a_row():
    layers = with_hessian(group((1,), 64), 3 * torch.eye(64))
    settings = {"num_levels": 2, "step": 5}
    wanda, magnitude = Wanda(**settings).compress(layers), Magnitude(**settings).compress(layers)
    for a, b in zip(wanda.levels[0], magnitude.levels[0], strict=True):
        assert torch.equal(a.dense(), b.dense())


def test_an_input_that_was_never_active_is_noted_and_counts_the_same_everywhere():
    layers = group((3,), 32)
    idle = Wanda(step=10).compress(with_hessian(layers, torch.zeros(32, 32)))
    even = Wanda(step=10).compress(with_hessian(layers, torch.eye(32)))
    assert all(torch.equal(a.dense(), b.dense()) for a, b in zip(idle.levels[0], even.levels[0], strict=True))
    assert "within each row" in idle.notes[0] and not even.notes


def test_survivors_are_not_changed():
    layers = group((5,), 32)
    for compressor in (Wanda(step=10, value_dtype="float32"), Magnitude(step=10, value_dtype="float32")):
        for level in compressor.compress(layers).levels[0]:
            assert torch.equal(level.dense(), layers.weights[0] * level.kept())


def test_magnitude_removes_the_smallest_weights_of_the_layer():
    layers = group((5,), 32)
    for level in Magnitude(step=10, value_dtype="float32").compress(layers).levels[0]:
        kept, size = level.kept(), layers.weights[0].abs()
        if kept.any() and not kept.all():
            assert size[kept].min() >= size[~kept].max()


def test_ranks_follow_the_order_of_floats_and_keep_equal_ones_in_order():
    scores = torch.tensor([[0.5, 0.0, 3e38, 0.5, 1e-40]])
    assert ranks(scores).tolist() == [[2, 0, 4, 3, 1]]
