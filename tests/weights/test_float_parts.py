"""What can be tuned of a weight: its parts make the weight, and other parts take as many bytes."""

import pytest
import torch

from evopress.weights.base import CompressedWeight, from_tensors
from evopress.weights.block_grids import TYPES
from evopress.weights.ggml import round_to
from evopress.weights.k_types import K_TYPES
from tests.databases import WEIGHTS, random_weight
from tests.k_weights import k_weight, random_parts

ALL: dict[str, CompressedWeight] = (
    WEIGHTS
    | {name: round_to(random_weight(3, 64), name) for name in TYPES}
    | {name: k_weight(name, random_parts(name)) for name in K_TYPES}
)
WITH_PARTS = {name: weight for name, weight in ALL.items() if weight.float_parts()}
NOT_EMPTY = [name for name in WITH_PARTS if name != "no weights"]


def test_quantised_weights_have_scales_sparse_ones_values_and_types_with_an_offset_offsets():
    parts = {name: set(weight.float_parts()) for name, weight in ALL.items()}
    for name, weight in ALL.items():
        if name in ("kept", "dropped"):
            assert not parts[name]
        elif name in K_TYPES:
            assert parts[name] == ({"d", "dmin"} if K_TYPES[name].has_minima else {"d"})
        else:
            offsets = {"offsets"} if name in ("Q5_1", "Q4_1") else set()
            assert parts[name] == ({"scales"} if weight.is_quantized else {"values"}) | offsets


@pytest.mark.parametrize("name", WITH_PARTS)
def test_the_stored_parts_give_the_stored_weight(name):
    weight = WITH_PARTS[name]
    values = {part: content.value for part, content in weight.float_parts().items()}
    assert torch.equal(weight.dense_with(values), weight.dense())
    assert torch.equal(weight.with_float_parts(values).dense(), weight.dense())


@pytest.mark.parametrize("name", NOT_EMPTY)
def test_other_parts_are_rounded_and_take_as_many_bytes(name):
    weight = WITH_PARTS[name]
    values = {part: content.value + 0.013 * content.unit for part, content in weight.float_parts().items()}
    changed = weight.with_float_parts(values)
    assert changed.size_bytes == weight.size_bytes and changed.spec() == weight.spec()
    assert {k: (t.dtype, t.shape) for k, t in changed.tensors().items()} == {
        k: (t.dtype, t.shape) for k, t in weight.tensors().items()
    }
    assert torch.equal(from_tensors(changed.spec(), changed.tensors()).dense(), changed.dense())
    rtol = 4e-3 if any(tensor.dtype == torch.bfloat16 for tensor in weight.tensors().values()) else 1e-3
    torch.testing.assert_close(changed.dense(), weight.dense_with(values), rtol=rtol, atol=1e-3)
    assert not torch.equal(changed.dense(), weight.dense())


@pytest.mark.parametrize("name", NOT_EMPTY)
def test_one_unit_changes_a_weight_by_about_its_range(name):
    weight = WITH_PARTS[name]
    for part in weight.float_parts():
        values = {other: c.value + (c.unit if other == part else 0) for other, c in weight.float_parts().items()}
        change = (weight.dense_with(values) - weight.dense()).abs().max()
        assert 0.3 < change / weight.dense().abs().max() < 3


def test_a_scale_that_would_vanish_stays_positive():
    weight = WITH_PARTS["3 bits"]
    changed = weight.with_float_parts({"scales": -weight.float_parts()["scales"].value})
    assert (changed.float_parts()["scales"].value > 0).all()
    assert (changed.float_parts()["scales"].value < 1e-6).all()
