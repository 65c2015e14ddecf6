"""The measurements that some searches build on equal plain ones, taken with hooks on whole models."""

import pytest
import torch
from torch import Tensor

from evopress.compressors.drop import Drop
from evopress.compressors.rtn import RTN
from evopress.database.store import BlockLevels, Database
from evopress.evaluation.layer_errors import layer_errors
from evopress.evaluation.outliers import outlier_shares
from evopress.evaluation.residual_stream import cosine, relative_change, stream_changes
from evopress.space.build import drop_space, layer_space
from evopress.space.settings import SpaceSettings
from evopress.space.units import Space
from tests import plain
from tests.tiny_models import NUM_BLOCKS, tiny, token_windows

TOKENS = token_windows(3, 20)
SPANS = (1.0, 2.0, 4.0)


def inputs_and_outputs(model: torch.nn.Module, path: str) -> tuple[Tensor, Tensor]:
    """What enters and leaves a module on the windows one at a time, float64 (windows, time, …)."""
    seen: list[tuple[Tensor, Tensor]] = []

    def note(module, args, output):
        seen.append((args[0].double(), (output[0] if isinstance(output, tuple) else output).double()))

    handle = model.get_submodule(path).register_forward_hook(note)
    plain.logits(model, TOKENS)
    handle.remove()
    entered, left = zip(*seen, strict=True)
    return torch.cat(entered), torch.cat(left)


@pytest.mark.parametrize("tie", ["none", "engine"])
def test_errors_of_tied_layers_add_up(tie, tmp_path):
    lm = tiny("llama")
    compressor = RTN(bits=(4, 3, 2), group_size=32)
    database = Database.open(tmp_path, "test", {})
    names = [[f"{prefix}.{local}" for group in lm.layer_groups for local in group] for prefix in lm.block_names]
    errors = {name: [float(i), i + 0.25, i + 0.5] for i, name in enumerate(name for block in names for name in block)}
    levels = plain.layer_levels(lm, compressor)
    for block, inside in enumerate(names):
        database.put(
            block, BlockLevels({name: levels[name] for name in inside}, {name: errors[name] for name in inside})
        )
    space = layer_space(lm, compressor, SpaceSettings(tie=tie))
    assert layer_errors(space, database) == [
        [sum(errors[layer][level] for layer in unit.layers) for level in range(3)] for unit in space.units
    ]


@pytest.mark.parametrize("family", ["llama", "phi3", "gemma3_text", "opt"])
def test_outliers_are_the_share_of_scores_far_above_their_mean(family):
    lm, multiples = tiny(family), (0.5, 1.0, 2.0, 5.0)
    found = outlier_shares(lm, TOKENS, multiples)
    for prefix, row in zip(lm.block_names, found, strict=True):
        scores = []
        for local in (local for group in lm.family.layers for local in group):
            X, _ = inputs_and_outputs(lm.model, f"{prefix}.{local}")
            weight = lm.model.get_submodule(f"{prefix}.{local}").weight.double()
            scores.append((weight.abs() * X.flatten(0, -2).norm(dim=0)).flatten())
        together = torch.cat(scores)
        shares = [float((together > multiple * together.mean()).double().mean()) for multiple in multiples]
        assert row == pytest.approx(shares, abs=2 / len(together))
        assert shares[0] > shares[1] > shares[2] > 0


def places(family: str, space: Space) -> list[Tensor]:
    """The residual stream before the first unit and after each, one whole model per place."""
    lm = tiny(family)
    found = [inputs_and_outputs(lm.model, lm.block_names[0])[0]]
    for unit in space.units:
        without_mlp = [int(other.kind == "mlp" and other.blocks == unit.blocks) for other in space.units]
        profile = tuple(without_mlp) if unit.kind == "attention" else (0,) * len(space)
        model = plain.assembled_model(lm, space, {}, profile)
        found.append(inputs_and_outputs(model, lm.block_names[unit.blocks[-1]])[1])
    return found


@pytest.mark.parametrize("granularity", ["subblock", "block"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "opt"])
def test_stream_measures_are_the_plain_ones(family, granularity):
    lm = tiny(family)
    space = drop_space(lm, Drop(granularity=granularity))
    at = places(family, space)
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


def test_there_are_as_many_rows_as_units_or_blocks():
    lm = tiny("llama")
    assert len(outlier_shares(lm, TOKENS, (5.0,))) == NUM_BLOCKS
    for granularity, count in (("subblock", 2 * NUM_BLOCKS), ("block", NUM_BLOCKS)):
        rows = stream_changes(lm, drop_space(lm, Drop(granularity=granularity)), TOKENS, "cosine", SPANS)
        assert [len(row) for row in rows] == [len(SPANS)] * count


def test_cosine_and_relative_change_of_known_vectors():
    x, y = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[6.0, 8.0], [0.0, 2.0]])
    assert cosine(x, y).tolist() == pytest.approx([1.0, 0.0])
    assert relative_change(x, y).tolist() == pytest.approx([0.5, 5**0.5 / 2])
