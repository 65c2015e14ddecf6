"""Hessians and weights that are huge, tiny, constant, or of too low rank, through every compressor."""

import pytest
import torch

from evopress.compressors.base import LayerGroup
from evopress.compressors.float import Float
from evopress.compressors.gguf import GGUF
from evopress.compressors.gptq import GPTQ
from evopress.compressors.sparsegpt import SparseGPT
from evopress.compressors.wanda import Wanda

pytestmark = pytest.mark.counts("odd numbers")

COMPRESSORS = [
    GPTQ(bits=(2, 4), group_size=32),
    GPTQ(bits=(2, 4), group_size=32, act_order=True),
    SparseGPT(step=50, num_levels=1),
    Wanda(step=50, num_levels=1),
    GGUF(types=("Q8_0", "Q4_0")),
    Float(),
]


def layer_group(H: torch.Tensor, scale: float = 1.0) -> LayerGroup:
    W = torch.randn(8, len(H), generator=torch.Generator().manual_seed(1))
    return LayerGroup(("layer",), (scale * W,), H)


def hessian(tokens: int, cols: int = 64) -> torch.Tensor:
    X = torch.randn(tokens, cols, generator=torch.Generator().manual_seed(0))
    return 2 / tokens * X.t() @ X


def plain_errors(group: LayerGroup, compressor) -> list[float]:
    """tr(ΔW H ΔWᵀ) / tr(W H Wᵀ) in float64, of every level."""
    W, H = group.weights[0].double(), group.hessian.double()
    changes = [level.dense().double() - W for level in compressor.compress(group).levels[0]]
    return [float((change @ H * change).sum() / (W @ H * W).sum()) for change in changes]


@pytest.mark.parametrize("scale", [2.0**123, 2.0**-123])  # powers of two scale floats without rounding
@pytest.mark.parametrize("compressor", COMPRESSORS, ids=lambda compressor: type(compressor).__name__)
def test_the_scale_of_a_hessian_changes_no_error(compressor, scale):
    normal = compressor.compress(layer_group(hessian(200)))
    extreme = compressor.compress(layer_group(scale * hessian(200)))
    assert extreme.errors[0] == pytest.approx(normal.errors[0], rel=1e-3)
    assert min(extreme.errors[0]) > 0 and extreme.notes == ()


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("compressor", COMPRESSORS, ids=lambda compressor: type(compressor).__name__)
def test_fewer_tokens_than_inputs_give_finite_levels_and_the_errors_of_a_plain_computation(compressor, tokens):
    group = layer_group(hessian(tokens))
    compressed = compressor.compress(group)
    assert all(bool(level.dense().isfinite().all()) for level in compressed.levels[0])
    assert compressed.errors[0] == pytest.approx(plain_errors(group, compressor), rel=0.02, abs=1e-6)


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=lambda compressor: type(compressor).__name__)
def test_constant_rows_are_finite_and_rows_of_zeros_stay_zeros(compressor):
    W = torch.full((3, 64), 0.7)
    W[1] = 0
    for level in compressor.compress(LayerGroup(("layer",), (W,), hessian(200))).levels[0]:
        assert bool(level.dense().isfinite().all()) and not level.dense()[1].any()


@pytest.mark.parametrize("compressor", COMPRESSORS[:3], ids=lambda compressor: type(compressor).__name__)
@pytest.mark.parametrize(
    ("coupling", "steps"),
    [(1.05, ["float64", "damping"]), (100.0, ["float64", "damping", "instead"])],
    ids=["more damping", "simple method"],
)
def test_every_attempt_to_factor_a_hessian_is_noted_and_the_levels_are_finite(compressor, coupling, steps):
    """Sums of outer products are never that far from positive definite, except by rounding."""
    H = torch.eye(64)
    H[0, 1] = H[1, 0] = coupling
    compressed = compressor.compress(layer_group(H))
    notes = " ".join(compressed.notes)
    assert all(step in notes for step in steps) and notes.startswith("layer: ")
    assert ("instead" in notes) == ("instead" in steps)
    assert all(bool(level.dense().isfinite().all()) for level in compressed.levels[0])


@pytest.mark.parametrize("act_order", [False, True])
def test_weights_beyond_a_float16_scale_are_noted_and_have_the_error_of_lost_weights(act_order):
    compressor = GPTQ(bits=(4,), group_size=32, act_order=act_order)
    group = layer_group(hessian(200), scale=1e30)
    clipped = compressor.compress(group)
    assert "layer: weights exceed the range of float16 scales" in clipped.notes[0]
    assert clipped.errors[0] == pytest.approx([1.0])
    wide = GPTQ(bits=(4,), group_size=32, act_order=act_order, scale_dtype="float32").compress(group)
    assert wide.notes == () and 0 < wide.errors[0][0] < 0.1


@pytest.mark.parametrize("cols", [48, 80])
def test_inputs_that_the_group_does_not_divide_take_a_smaller_one(cols):
    solved = GPTQ(bits=(4,), group_size=64).compress(layer_group(hessian(200, cols)))
    assert solved.levels[0][0].group_size == 16
    assert 0 < solved.errors[0][0] < 0.05
