"""A build stores what the compressor returns, and leaves the model as it was."""

import json

import pytest
import torch
from safetensors import safe_open

from evopress.compressors.base import CompressedGroup, LayerGroup
from evopress.compressors.magnitude import Magnitude
from evopress.compressors.rtn import RTN
from evopress.database.build import BatchLimits, build_database
from evopress.models.loading import wrap_model
from evopress.weights.integer import QuantizedWeight
from tests.databases import BITS, WINDOWS, built, database_in, open_database, recording_gptq
from tests.tiny_models import VOCABULARY, random_model, tiny, token_windows, tokenizer


def test_the_database_holds_what_the_compressor_returned_for_the_dense_weights(tmp_path):
    lm = tiny("phi3")
    compressor, groups = recording_gptq()
    database = built(lm, compressor, tmp_path)
    for index, group in enumerate(groups):
        compressed = BITS.compress(group)
        for name, weight, levels in zip(group.names, group.weights, compressed.levels, strict=True):
            assert torch.equal(weight, lm.model.get_submodule(name).weight)
            for level, packed in enumerate(levels):
                stored = database.read(index // len(lm.family.layers), name, level)
                assert isinstance(stored, QuantizedWeight) and torch.equal(stored.dense(), packed.dense())


def test_a_compressor_that_needs_no_hessian_receives_none(tmp_path):
    hessians: list[object] = []

    class Rounds(RTN):
        def compress(self, group: LayerGroup) -> CompressedGroup:
            hessians.append(group.hessian)
            return super().compress(group)

    built(tiny("llama"), Rounds(bits=(4, 2), group_size=32), tmp_path)
    assert hessians == [None] * 12


def test_a_build_leaves_the_model_unchanged(tmp_path):
    lm = tiny("opt")
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    built(lm, BITS, tmp_path)
    assert all(torch.equal(before[name], tensor) for name, tensor in lm.model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lm.model.modules())


def test_notes_of_the_compressor_are_stored_and_logged(tmp_path, caplog):
    class Notes(RTN):
        def compress(self, group: LayerGroup) -> CompressedGroup:
            compressed = super().compress(group)
            return CompressedGroup(compressed.levels, compressed.errors, (f"{group.names[0]} was odd",))

    lm = tiny("llama")
    database = built(lm, Notes(bits=(4, 2), group_size=32), tmp_path)
    assert len(database.notes) == 12 and database.notes[0] == "model.layers.0.self_attn.q_proj was odd"
    assert "model.layers.2.mlp.down_proj was odd" in caplog.text


def test_inputs_that_are_not_finite_are_an_error_that_names_the_layer(tmp_path):
    lm = wrap_model(random_model("llama"), tokenizer(), "broken")
    with torch.no_grad():
        lm.model.get_input_embeddings().weight[VOCABULARY - 1] = float("inf")  # a loaded model cannot have this
    assert (WINDOWS == VOCABULARY - 1).any()
    with pytest.raises(ValueError, match=r"inputs of model\.layers\.0\.self_attn\.q_proj are not finite.*model\.dtype"):
        built(lm, BITS, tmp_path)
    assert database_in(tmp_path).blocks == {}


def test_a_database_holds_every_layer_at_every_level(tmp_path):
    lm = tiny("opt")
    compressor = Magnitude(base=0.5, num_levels=1, step=100)
    build_database(lm, compressor, token_windows(2, 8), open_database(tmp_path), limits=BatchLimits(batch_tokens=16))
    database = open_database(tmp_path)
    for index in range(lm.num_blocks):
        with safe_open(database.folder / f"block-{index:03d}.safetensors", "pt") as file:
            assert json.loads(file.metadata()["specs"]).keys() == {
                f"{lm.layer_name(index, local)}@{level}" for local in lm.layers(index) for level in range(3)
            }
