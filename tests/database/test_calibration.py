"""Each block is calibrated on the outputs of the compressed blocks before it."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from evopress.compressors.base import LayerGroup
from evopress.compressors.gguf import GGUF
from evopress.compressors.sparsegpt import SparseGPT
from evopress.database import calibration
from evopress.database.store import Database
from evopress.models.language_model import LanguageModel
from evopress.models.transfers import prefetched, store
from evopress.space.units import OUTSIDE
from tests.databases import BITS, PROPAGATED, WINDOWS, built, recording_gptq
from tests.marks import slow_except
from tests.tiny_models import FAMILIES, tiny


def inputs_of(model: torch.nn.Module, layer: str) -> torch.Tensor:
    """All inputs of a layer while the whole model runs on the windows, float64 (tokens, cols)."""
    inputs: list[torch.Tensor] = []
    hook = lambda module, args: inputs.append(args[0].flatten(0, -2).double())  # noqa: E731
    handle = model.get_submodule(layer).register_forward_pre_hook(hook)
    with torch.no_grad():
        for window in WINDOWS.split(1):
            model(input_ids=window, use_cache=False)
    handle.remove()
    return torch.cat(inputs)


def plain_hessians(lm: LanguageModel, database: Database) -> dict[str, torch.Tensor]:
    """2/n XᵀX per layer. The whole model runs, with the blocks before that of the layer at the propagated level."""
    model, hessians = deepcopy(lm.model), {}
    for block, prefix in enumerate(lm.block_names):
        names = [f"{prefix}.{local}" for group in lm.family.layers for local in group]
        for name in names:
            X = inputs_of(model, name)
            hessians[name] = 2 / len(X) * X.t() @ X
        for name in names:
            model.get_submodule(name).weight.data = database.read(block, name, PROPAGATED).dense()
    return hessians


@pytest.mark.parametrize("family", slow_except(FAMILIES, ("llama", "gemma2")))
def test_hessians_equal_those_of_whole_models_with_the_blocks_before_compressed(family, tmp_path):
    lm = tiny(family)
    compressor, groups = recording_gptq(weigh_tokens=False)
    database = built(lm, compressor, tmp_path)
    expected = plain_hessians(lm, database)
    assert [group.names for group in groups] == [
        tuple(f"{prefix}.{local}" for local in group) for prefix in lm.block_names for group in lm.family.layers
    ]
    for group in groups:
        for name in group.names:
            scale = float(expected[name].abs().max())
            torch.testing.assert_close(group.hessian.double(), expected[name], rtol=1e-4, atol=1e-4 * scale)


def test_blocks_after_the_first_are_calibrated_on_compressed_blocks(tmp_path):
    lm = tiny("llama")
    compressor, groups = recording_gptq(weigh_tokens=False)
    built(lm, compressor, tmp_path)
    for group in groups:
        X = inputs_of(lm.model, group.names[0])
        dense = 2 / len(X) * X.t() @ X
        change = float((group.hessian - dense).norm() / dense.norm())
        assert (change < 1e-4) if ".layers.0." in group.names[0] else (change > 1e-2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "compressor",
    [replace(BITS, weigh_tokens=False), SparseGPT(base=0.5, num_levels=1, step=200, weigh_tokens=False)],
    ids=["bits", "sparsity"],
)
def test_the_second_block_has_the_levels_that_follow_from_these_hessians(compressor, tmp_path):
    """Nearly all weights are equal. Float32 and float64 Hessians may round a few differently."""
    lm = tiny("gemma3_text")
    database = built(lm, compressor, tmp_path)
    assert compressor.propagate_level == PROPAGATED
    expected = plain_hessians(lm, database)
    for group in lm.family.layers:
        names = tuple(f"{lm.block_names[1]}.{local}" for local in group)
        weights = tuple(lm.model.get_submodule(name).weight.detach() for name in names)
        compressed = compressor.compress(LayerGroup(names, weights, expected[names[0]].float()))
        for name, levels, errors in zip(names, compressed.levels, compressed.errors, strict=True):
            for index, level in enumerate(levels):
                stored, expected_weight = database.read(1, name, index).dense(), level.dense()
                assert float(((stored - expected_weight).abs() > 1e-3).float().mean()) < 0.01
            assert database.errors(1, name) == pytest.approx(errors, rel=1e-2, abs=1e-6)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_head_is_compressed_with_its_inputs_and_the_embeddings_are_rounded(family, tmp_path):
    lm, compressor = tiny(family), GGUF(types=("Q8_0", "Q4_0"))
    database = built(lm, compressor, tmp_path)
    model = deepcopy(lm.model)
    for prefix in lm.block_names:
        for name in (f"{prefix}.{local}" for group in lm.family.layers for local in group):
            block = lm.block_names.index(prefix)
            model.get_submodule(name).weight.data = database.read(block, name, compressor.propagate_level).dense()
    X = inputs_of(model, lm.family.head)
    weight = lm.model.get_submodule(lm.embedding_and_head[-1]).weight.detach()
    hessian = (2 / len(X) * X.t() @ X).float()
    compressed = compressor.compress(LayerGroup((lm.embedding_and_head[-1],), (weight,), hessian))
    assert database.errors(OUTSIDE, lm.embedding_and_head[-1]) == pytest.approx(compressed.errors[0], rel=1e-2)
    for level, expected in enumerate(compressed.levels[0]):
        stored = database.read(OUTSIDE, lm.embedding_and_head[-1], level).dense()
        assert float(((stored - expected.dense()).abs() > 1e-3).float().mean()) < 0.02
    if len(lm.embedding_and_head) == 2:
        weight = lm.model.get_submodule(lm.embedding_and_head[0]).weight.detach()
        rounded = compressor.compress(LayerGroup(("embeddings",), (weight,), torch.eye(weight.shape[1])))
        assert torch.equal(database.read(OUTSIDE, lm.embedding_and_head[0], 1).dense(), rounded.levels[0][1].dense())


def test_the_batch_size_changes_only_rounding(tmp_path):
    lm = tiny("llama")
    (together, many), (apart, few) = recording_gptq(), recording_gptq()
    built(lm, together, tmp_path / "together", batch_tokens=10**6)
    built(lm, apart, tmp_path / "apart", batch_tokens=1)
    for a, b in zip(many[:4], few[:4], strict=True):  # later ones depend on codes that may be rounded differently
        torch.testing.assert_close(a.hessian, b.hessian, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("states_gb", [1.0, 1e-9])
def test_each_batch_of_states_is_copied_to_the_device_once_per_block_and_back_once(states_gb, tmp_path, monkeypatch):
    lm, loaded, stored = tiny("llama"), [], []

    def counted(tensors, device):
        loaded.append(len(tensors))
        return prefetched(tensors, device)

    def counted_store(values, target):
        stored.append(values)
        store(values, target)

    monkeypatch.setattr(calibration, "prefetched", counted)
    monkeypatch.setattr(calibration, "store", counted_store)
    built(lm, recording_gptq(weigh_tokens=False)[0], tmp_path, batch_tokens=60, states_gb=states_gb)
    num_batches = 4
    assert sum(loaded) == num_batches * lm.num_blocks
    assert len(stored) == num_batches * (lm.num_blocks - 1)
