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


def test_quantised_weights_have_scales_and_the_types_with_an_offset_have_offsets():
    assert {name for name in WITH_PARTS} == {
        name for name in ALL if "bit" in name or "Q" in name or name == "symmetric"
    }
    assert {name for name, weight in WITH_PARTS.items() if "offsets" in weight.float_parts()} == {"Q5_1", "Q4_1"}


@pytest.mark.parametrize("name", WITH_PARTS)
def test_the_stored_parts_give_the_stored_weight(name):
    weight = WITH_PARTS[name]
    values = {part: content.value for part, content in weight.float_parts().items()}
    assert torch.equal(weight.dense_with(values), weight.dense())
    assert torch.equal(weight.with_float_parts(values).dense(), weight.dense())


@pytest.mark.parametrize("name", WITH_PARTS)
def test_other_parts_are_rounded_and_take_as_many_bytes(name):
    weight = WITH_PARTS[name]
    values = {part: content.value + 0.013 * content.unit for part, content in weight.float_parts().items()}
    changed = weight.with_float_parts(values)
    assert changed.size_bytes == weight.size_bytes and changed.spec() == weight.spec()
    assert {k: (t.dtype, t.shape) for k, t in changed.tensors().items()} == {
        k: (t.dtype, t.shape) for k, t in weight.tensors().items()
    }
    assert torch.equal(from_tensors(changed.spec(), changed.tensors()).dense(), changed.dense())
    torch.testing.assert_close(changed.dense(), weight.dense_with(values), rtol=1e-3, atol=1e-3)
    assert not torch.equal(changed.dense(), weight.dense())


@pytest.mark.parametrize("name", WITH_PARTS)
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
