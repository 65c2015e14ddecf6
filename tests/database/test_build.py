"""Each block is calibrated on the outputs of the compressed blocks before it, and a killed build ends the same."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch

from evopress.compressors.base import CompressedGroup, Compressor, LayerGroup
from evopress.compressors.gguf import GGUF as BlockTypes
from evopress.compressors.gptq import GPTQ
from evopress.compressors.rtn import RTN
from evopress.compressors.sparsegpt import SparseGPT
from evopress.database.build import build_database
from evopress.database.store import Database
from evopress.models.language_model import LanguageModel
from evopress.models.loading import wrap_model
from evopress.space.units import OUTSIDE
from evopress.weights.ggml import round_to
from evopress.weights.integer import QuantizedWeight
from tests.tiny_models import FAMILIES, VOCABULARY, random_model, tiny, token_windows, tokenizer

WINDOWS = token_windows(10, 20)
BITS = GPTQ(bits=(4, 3, 2), group_size=32, propagate_bits=3)
PROPAGATED = 1


class Killed(BaseException):
    """Like a kill: nothing in the program catches it."""


def watched(lives: int = 10**6) -> tuple[GPTQ, list[LayerGroup]]:
    """The same compressor, which dies after `lives` groups, and the list of groups that it is given."""
    groups: list[LayerGroup] = []

    class Watched(GPTQ):
        def compress(self, group: LayerGroup) -> CompressedGroup:
            if len(groups) == lives:
                raise Killed
            assert group.hessian is not None
            weights = tuple(weight.clone() for weight in group.weights)
            groups.append(LayerGroup(group.names, weights, group.hessian.clone()))
            return super().compress(group)

    return Watched(bits=BITS.bits, group_size=BITS.group_size, propagate_bits=BITS.propagate_bits), groups


def test_hidden_states_that_lie_in_a_file_give_the_same_bytes_and_leave_nothing(tmp_path):
    for folder, states_gb in (("memory", 1.0), ("file", 1e-6)):
        build_database(tiny("opt"), BITS, WINDOWS, database_in(tmp_path / folder), batch_tokens=60, states_gb=states_gb)
    names = [sorted(path.name for path in database_in(tmp_path / x).folder.iterdir()) for x in ("memory", "file")]
    assert names[0] == names[1] and not any("states" in name for name in names[0])
    for name in names[0]:
        of_both = [(database_in(tmp_path / x).folder / name).read_bytes() for x in ("memory", "file")]
        assert of_both[0] == of_both[1]


def database_in(root: Path) -> Database:
    return Database.open(root, "test", {"model": "tiny"})


def built(lm: LanguageModel, compressor: Compressor, root: Path, batch_tokens: int = 60) -> Database:
    build_database(lm, compressor, WINDOWS, database_in(root), batch_tokens=batch_tokens)
    return database_in(root)


def inputs_of(model: torch.nn.Module, layer: str) -> torch.Tensor:
    """Everything that enters a layer while the whole model runs on the windows, float64 (tokens, cols)."""
    seen: list[torch.Tensor] = []
    hook = lambda module, args: seen.append(args[0].flatten(0, -2).double())  # noqa: E731
    handle = model.get_submodule(layer).register_forward_pre_hook(hook)
    with torch.no_grad():
        for window in WINDOWS.split(1):
            model(input_ids=window, use_cache=False)
    handle.remove()
    return torch.cat(seen)


def plain_hessians(lm: LanguageModel, database: Database) -> dict[str, torch.Tensor]:
    """2/n XᵀX per layer; the whole model runs, blocks before the layer's own at the propagated level."""
    model, found = deepcopy(lm.model), {}
    for block, prefix in enumerate(lm.block_names):
        names = [f"{prefix}.{local}" for group in lm.family.layers for local in group]
        for name in names:
            X = inputs_of(model, name)
            found[name] = 2 / len(X) * X.t() @ X
        for name in names:
            model.get_submodule(name).weight.data = database.read(block, name, PROPAGATED).dense()
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_hessians_are_those_of_a_plain_run_on_the_compressed_blocks_before(family, tmp_path):
    lm = tiny(family)
    compressor, groups = watched()
    database = built(lm, compressor, tmp_path)
    expected = plain_hessians(lm, database)
    assert [group.names for group in groups] == [
        tuple(f"{prefix}.{local}" for local in group) for prefix in lm.block_names for group in lm.family.layers
    ]
    for group in groups:
        for name in group.names:
            scale = float(expected[name].abs().max())
            torch.testing.assert_close(group.hessian.double(), expected[name], rtol=1e-4, atol=1e-4 * scale)


def test_compressed_blocks_before_it_change_what_a_block_is_calibrated_on(tmp_path):
    lm = tiny("llama")
    compressor, groups = watched()
    built(lm, compressor, tmp_path)
    for group in groups:
        X = inputs_of(lm.model, group.names[0])
        dense = 2 / len(X) * X.t() @ X
        change = float((group.hessian - dense).norm() / dense.norm())
        assert (change < 1e-4) if ".layers.0." in group.names[0] else (change > 1e-2)


@pytest.mark.parametrize("compressor", [BITS, SparseGPT(base=0.5, num_levels=1, step=200)], ids=["bits", "sparsity"])
def test_the_second_block_has_the_levels_of_a_plain_pass(compressor, tmp_path):
    """Float32 and float64 Hessians may settle a weight on the fence differently, hence not all but nearly all."""
    lm = tiny("gemma3_text")
    database = built(lm, compressor, tmp_path)
    assert compressor.propagate_level == PROPAGATED
    expected = plain_hessians(lm, database)
    for group in lm.family.layers:
        names = tuple(f"{lm.block_names[1]}.{local}" for local in group)
        weights = tuple(lm.model.get_submodule(name).weight.detach() for name in names)
        solved = compressor.compress(LayerGroup(names, weights, expected[names[0]].float()))
        for name, levels, errors in zip(names, solved.levels, solved.errors, strict=True):
            for index, level in enumerate(levels):
                found, plain = database.read(1, name, index).dense(), level.dense()
                assert float(((found - plain).abs() > 1e-3).float().mean()) < 0.01
            assert database.errors(1, name) == pytest.approx(errors, rel=1e-2, abs=1e-6)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_head_is_solved_with_what_it_reads_and_the_embeddings_are_rounded(family, tmp_path):
    lm, compressor = tiny(family), BlockTypes(types=("Q8_0", "Q4_0"))
    database = built(lm, compressor, tmp_path)
    model = deepcopy(lm.model)
    for prefix in lm.block_names:
        for name in (f"{prefix}.{local}" for group in lm.family.layers for local in group):
            block = lm.block_names.index(prefix)
            model.get_submodule(name).weight.data = database.read(block, name, compressor.propagate_level).dense()
    X = inputs_of(model, lm.family.head)
    weight = lm.model.get_submodule(lm.embedding_and_head[-1]).weight.detach()
    solved = compressor.compress(LayerGroup((lm.embedding_and_head[-1],), (weight,), (2 / len(X) * X.t() @ X).float()))
    assert database.errors(OUTSIDE, lm.embedding_and_head[-1]) == pytest.approx(solved.errors[0], rel=1e-2)
    for level, plain in enumerate(solved.levels[0]):
        found = database.read(OUTSIDE, lm.embedding_and_head[-1], level).dense()
        assert float(((found - plain.dense()).abs() > 1e-3).float().mean()) < 0.02
    if len(lm.embedding_and_head) == 2:
        weight = lm.model.get_submodule(lm.embedding_and_head[0]).weight.detach()
        assert torch.equal(
            database.read(OUTSIDE, lm.embedding_and_head[0], 1).dense(), round_to(weight, "Q4_0").dense()
        )


def test_a_killed_build_solves_what_is_missing_outside_the_blocks(tmp_path):
    lm, compressor = tiny("llama"), BlockTypes(types=("Q8_0", "Q4_0"))
    whole = built(lm, compressor, tmp_path / "whole")
    database = built(lm, compressor, tmp_path / "again")
    content = (database.folder / "outside.safetensors").read_bytes()
    (database.folder / "outside.safetensors").unlink()
    again = built(lm, compressor, tmp_path / "again")
    assert (again.folder / "outside.safetensors").read_bytes() == content
    assert again.blocks == whole.blocks


def test_the_database_holds_exactly_what_the_compressor_made_of_the_dense_weights(tmp_path):
    lm = tiny("phi3")
    compressor, groups = watched()
    database = built(lm, compressor, tmp_path)
    for index, group in enumerate(groups):
        solved = BITS.compress(group)
        for name, weight, levels in zip(group.names, group.weights, solved.levels, strict=True):
            assert torch.equal(weight, lm.model.get_submodule(name).weight)
            for level, packed in enumerate(levels):
                found = database.read(index // len(lm.family.layers), name, level)
                assert isinstance(found, QuantizedWeight) and torch.equal(found.dense(), packed.dense())


def test_the_number_of_tokens_at_once_changes_rounding_only(tmp_path):
    lm = tiny("llama")
    (together, many), (apart, few) = watched(), watched()
    built(lm, together, tmp_path / "together", batch_tokens=10**6)
    built(lm, apart, tmp_path / "apart", batch_tokens=1)
    for a, b in zip(many[:4], few[:4], strict=True):  # later ones may sit on another side of the fence
        torch.testing.assert_close(a.hessian, b.hessian, rtol=1e-4, atol=1e-5)


def test_a_compressor_that_needs_no_hessian_gets_none(tmp_path):
    seen: list[object] = []

    class Rounds(RTN):
        def compress(self, group: LayerGroup) -> CompressedGroup:
            seen.append(group.hessian)
            return super().compress(group)

    built(tiny("llama"), Rounds(bits=(4, 2), group_size=32), tmp_path)
    assert seen == [None] * 12


def test_the_model_is_left_as_it_was(tmp_path):
    lm = tiny("opt")
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    built(lm, BITS, tmp_path)
    assert all(torch.equal(before[name], tensor) for name, tensor in lm.model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lm.model.modules())


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@pytest.mark.parametrize("lives", [0, 5, 11])
def test_a_killed_build_continues_to_the_same_bytes(lives, family, tmp_path):
    lm = tiny(family)
    whole = built(lm, BITS, tmp_path / "whole")
    with pytest.raises(Killed):
        built(lm, watched(lives)[0], tmp_path / "killed")
    compressor, groups = watched()
    resumed = built(lm, compressor, tmp_path / "killed")
    assert len(groups) == 12 - lives // 4 * 4
    assert sorted(path.name for path in resumed.folder.iterdir()) == sorted(p.name for p in whole.folder.iterdir())
    for path in whole.folder.iterdir():
        assert (resumed.folder / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_lost_block_is_built_alone_to_the_same_bytes(lost, tmp_path):
    lm = tiny("llama")
    database = built(lm, BITS, tmp_path)
    path = database.folder / f"block-{lost:03d}.safetensors"
    content = path.read_bytes()
    path.unlink()
    compressor, groups = watched()
    built(lm, compressor, tmp_path)
    assert path.read_bytes() == content
    assert {group.names[0].split(".")[2] for group in groups} == {str(lost)}


def test_a_complete_database_is_not_built_again(tmp_path):
    lm = tiny("llama")
    built(lm, BITS, tmp_path)
    built(lm, watched(0)[0], tmp_path)


def test_remarks_of_the_compressor_are_kept_and_shown(tmp_path, caplog):
    class Remarks(RTN):
        def compress(self, group: LayerGroup) -> CompressedGroup:
            solved = super().compress(group)
            return CompressedGroup(solved.levels, solved.errors, (f"{group.names[0]} was odd",))

    lm = tiny("llama")
    database = built(lm, Remarks(bits=(4, 2), group_size=32), tmp_path)
    assert len(database.notes) == 12 and database.notes[0] == "model.layers.0.self_attn.q_proj was odd"
    assert "model.layers.2.mlp.down_proj was odd" in caplog.text


def test_inputs_that_are_not_finite_are_refused_with_the_layer(tmp_path):
    lm = wrap_model(random_model("llama"), tokenizer(), "broken")
    with torch.no_grad():
        lm.model.get_input_embeddings().weight[VOCABULARY - 1] = float("inf")  # loading would have refused it
    assert (WINDOWS == VOCABULARY - 1).any()
    with pytest.raises(ValueError, match=r"inputs of model\.layers\.0\.self_attn\.q_proj are not finite.*model\.dtype"):
        built(lm, BITS, tmp_path)
    assert database_in(tmp_path).blocks == {}
