"""Packed tensors of experts are split into one matrix per expert and joined again to the same bits."""

import pytest
import torch

from evopress.models.packed_experts import (
    LAYOUTS,
    ONE_PER_MATRIX,
    PackedLayout,
    packed_name,
    packed_names,
    packed_state,
)
from tests.tiny_models import PACKED_IN_FILES, random_model, tiny

ALL_LAYOUTS = [
    PackedLayout(interleaved=interleaved, transposed=transposed, has_biases=biases)
    for interleaved in (False, True)
    for transposed in (False, True)
    for biases in (False, True)
]
EXPERTS, HIDDEN, INNER = 3, 5, 4


def packed(layout: PackedLayout) -> dict[str, torch.Tensor]:
    shapes = {"gate_up_proj": (EXPERTS, 2 * INNER, HIDDEN), "down_proj": (EXPERTS, HIDDEN, INNER)}
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    if layout.transposed:
        tensors = {name: tensor.transpose(1, 2).contiguous() for name, tensor in tensors.items()}
    if layout.has_biases:
        tensors |= {
            "gate_up_proj_bias": torch.randn(EXPERTS, 2 * INNER),
            "down_proj_bias": torch.randn(EXPERTS, HIDDEN),
        }
    return tensors


@pytest.mark.parametrize("layout", ALL_LAYOUTS)
def test_joining_what_was_split_gives_the_same_tensors(layout):
    tensors = packed(layout)
    assert layout.fits(tensors)
    parts = dict(zip(("gate", "up", "down"), layout.split(tensors), strict=True))
    state = {
        f"a.experts.{expert}.{matrix}_proj.{kind}": tensor[expert]
        for matrix, kinds in parts.items()
        for kind, tensor in kinds.items()
        for expert in reversed(range(EXPERTS))
    }
    joined = packed_state({**state, "a.router.weight": torch.ones(2)}, layout)
    assert joined.pop("a.router.weight").tolist() == [1, 1]
    assert joined.keys() == {f"a.experts.{name}" for name in tensors} == set(packed_names(state))
    for name, tensor in tensors.items():
        assert torch.equal(joined[f"a.experts.{name}"], tensor) and joined[f"a.experts.{name}"].is_contiguous()


def test_a_layout_fits_only_tensors_with_its_names_and_shapes():
    for layout in ALL_LAYOUTS:
        fitting = [other for other in ALL_LAYOUTS if other.fits(packed(layout))]
        alike = [(other.transposed, other.has_biases) == (layout.transposed, layout.has_biases) for other in fitting]
        assert all(alike) and layout in fitting
        assert not layout.fits({name: tensor[0] for name, tensor in packed(layout).items()})


def test_gates_and_ups_are_the_rows_that_transformers_multiplies():
    tensors = packed(ONE_PER_MATRIX)
    gate, up, _ = ONE_PER_MATRIX.split(tensors)
    assert torch.equal(torch.cat([gate["weight"], up["weight"]], 1), tensors["gate_up_proj"])
    interleaved = PackedLayout(interleaved=True)
    gate, up, _ = interleaved.split(tensors)
    assert torch.equal(gate["weight"][:, 1], tensors["gate_up_proj"][:, 2])
    assert torch.equal(up["weight"][:, 1], tensors["gate_up_proj"][:, 3])


@pytest.mark.parametrize("family", PACKED_IN_FILES)
def test_files_have_the_tensors_that_transformers_writes(family):
    lm, model = tiny(family), random_model(family)
    expected = model.state_dict()
    stored = lm.stored_state(lm.model.state_dict())
    assert stored.keys() == expected.keys() == set(lm.stored_names(lm.model.state_dict()))
    assert all(torch.equal(stored[name], tensor) for name, tensor in expected.items())
    assert model.config.model_type in LAYOUTS


def test_layers_outside_experts_keep_their_names():
    for name in ("a.mlp.gate_proj.weight", "a.experts.0.router.weight", "a.shared_expert.gate_proj.weight"):
        assert packed_name(name) == name
