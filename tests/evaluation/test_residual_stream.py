"""Changes of the residual stream equal plain formulas on the recorded outputs of whole models."""

import pytest
import torch
from torch import Tensor

from evopress.compressors.drop import Drop
from evopress.evaluation.residual_stream import cosine, relative_change, stream_changes
from evopress.space.build import drop_space
from evopress.space.units import Space
from tests import plain
from tests.evaluation.recorded import inputs_and_outputs
from tests.tiny_models import NUM_BLOCKS, tiny, token_windows

TOKENS = token_windows(3, 20)
SPANS = (1.0, 2.0, 4.0)


def states(family: str, space: Space) -> list[Tensor]:
    """The residual stream before the first unit and after each unit, from one whole model for each."""
    lm = tiny(family)
    recorded = [inputs_and_outputs(lm.model, lm.block_names[0], TOKENS)[0]]
    for unit in space.units:
        without_mlp = [int(other.kind == "mlp" and other.blocks == unit.blocks) for other in space.units]
        profile = tuple(without_mlp) if unit.kind == "attention" else (0,) * len(space)
        model = plain.assembled_model(lm, space, {}, profile)
        recorded.append(inputs_and_outputs(model, lm.block_names[unit.blocks[-1]], TOKENS)[1])
    return recorded


@pytest.mark.parametrize("granularity", ["subblock", "block"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "opt"])
def test_stream_changes_equal_the_plain_formulas(family, granularity):
    lm = tiny(family)
    space = drop_space(lm, Drop(granularity=granularity))
    at = states(family, space)
    similar, changed = (stream_changes(lm, space, TOKENS, measure, SPANS) for measure in ("cosine", "relative_change"))
    for unit in range(len(space)):
        for column, span in enumerate(SPANS):
            end = unit + int(span)
            if end >= len(at):
                assert similar[unit][column] == 0 and changed[unit][column] == float("inf")
                continue
            x, y = at[unit], at[end]
            angle = (x * y).sum(-1) / (x.square().sum(-1).sqrt() * y.square().sum(-1).sqrt())
            assert similar[unit][column] == pytest.approx(float(angle.mean()), abs=1e-5)
            share = (y - x).square().sum(-1).sqrt() / y.square().sum(-1).sqrt()
            assert changed[unit][column] == pytest.approx(float(share.mean()), rel=1e-4)


def test_there_is_a_row_per_unit():
    lm = tiny("llama")
    for granularity, count in (("subblock", 2 * NUM_BLOCKS), ("block", NUM_BLOCKS)):
        rows = stream_changes(lm, drop_space(lm, Drop(granularity=granularity)), TOKENS, "cosine", SPANS)
        assert [len(row) for row in rows] == [len(SPANS)] * count


def test_cosine_and_relative_change_of_known_vectors():
    x, y = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[6.0, 8.0], [0.0, 2.0]])
    assert cosine(x, y).tolist() == pytest.approx([1.0, 0.0])
    assert relative_change(x, y).tolist() == pytest.approx([0.5, 5**0.5 / 2])
