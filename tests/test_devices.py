"""Where the code would make a GPU wait, tested without a GPU: reading a value takes longer than computing it.

Tensors on the device `meta` have a type and a shape but no values. Reading a value (`bool`, `float`, `tolist`, or a
shape that depends on one) raises an error, as do a copy to the CPU and an operation on tensors of two devices.
"""

from itertools import count
from random import Random

import pytest
import torch

from evopress.compressors.base import Compressor, LayerGroup
from evopress.compressors.drop import Drop
from evopress.compressors.gguf import GGUF
from evopress.compressors.gptq import GPTQ, _HessianParts
from evopress.compressors.hessian import RunningHessian
from evopress.compressors.magnitude import Magnitude
from evopress.compressors.rtn import RTN
from evopress.compressors.sparsegpt import SparseGPT
from evopress.compressors.wanda import Wanda
from evopress.database.cache import DecodedLevels
from evopress.evaluation.compressible_model import CompressibleModel
from evopress.evaluation.evaluator import Evaluator, EvaluatorSettings
from evopress.evaluation.switch_effects import switch_effects
from evopress.models.family_match import detect_family
from evopress.models.language_model import LanguageModel
from evopress.space.build import drop_space, layer_space
from evopress.space.choices import BlockChoice
from evopress.space.settings import SpaceSettings
from evopress.tuning.block_rounding import BlockTask, learn_block
from evopress.tuning.settings import Tuning
from evopress.weights.base import CompressedWeight
from evopress.weights.integer import QuantizedWeight
from evopress.weights.sparse import SparseWeight
from experiments.speed.account import counted
from tests.tiny_models import random_model, token_windows, tokenizer

META = torch.device("meta")


@pytest.fixture
def no_packing_check(monkeypatch):
    """Skip a check by transformers, in each call of a whole model, for texts that are packed into one window."""
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda position_ids: None)


class PackedInMemory:
    """Replaces a database: packed levels in the memory of the CPU, where those from a file are as well."""

    def __init__(self, levels: dict[str, list[CompressedWeight]]):
        self.levels = levels

    def read(self, block: int, layer: str, level: int) -> CompressedWeight:
        return self.levels[layer][level]


def meta_model(family: str) -> LanguageModel:
    model = random_model(family).requires_grad_(False).to(META)
    return LanguageModel(model=model, family=detect_family(model, family), name=f"tiny-{family}", tokenizer=tokenizer())


def packed_levels(lm: LanguageModel, compressor: RTN) -> dict[str, list[CompressedWeight]]:
    levels: dict[str, list[CompressedWeight]] = {}
    for block in range(lm.num_blocks):
        for local in lm.layers(block):
            rows, cols = lm.linear(block, local).weight.shape
            codes, scales = torch.zeros(rows, cols, dtype=torch.uint8), torch.ones(rows, cols // 16).half()
            zeros = torch.zeros(rows, cols // 16, dtype=torch.uint8)
            levels[lm.layer_name(block, local)] = [
                QuantizedWeight.from_codes(codes, scales, zeros=zeros, bits=bits) for bits in compressor.bits
            ]
    return levels


@pytest.mark.usefixtures("no_packing_check")
@pytest.mark.parametrize("fitness", ["kl", "topk_kl"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "opt"])
def test_an_evaluation_reads_no_value_before_its_result(family, fitness):
    lm, compressor = meta_model(family), RTN(bits=(2, 3, 4), group_size=16)
    database = PackedInMemory(packed_levels(lm, compressor))
    space = layer_space(lm, compressor, SpaceSettings())
    weights = DecodedLevels(database, limit_bytes=10**9, dtype=lm.dtype, device=META)  # type: ignore[arg-type]
    evaluator = Evaluator(lm, space, weights, EvaluatorSettings(fitness=fitness))
    profiles = [space.uniform(0), space.uniform(1), (*space.uniform(1)[:-1], 2)]
    with pytest.raises(RuntimeError, match="meta") as error:
        evaluator.evaluate(profiles, token_windows(2, 20))
    functions = [entry.name for entry in error.traceback if "evopress" in str(entry.path)]
    assert functions[-1] == "divergences"
    assert evaluator.block_tokens == 40 * (2 * lm.num_blocks + 1)
    assert weights.get(0, space.units[0].layers[0], 0).device == META


@pytest.mark.usefixtures("no_packing_check")
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "opt"])
def test_a_table_reads_no_value_before_its_result(family):
    lm, compressor = meta_model(family), RTN(bits=(2, 3, 4), group_size=16)
    space, database = layer_space(lm, compressor, SpaceSettings()), PackedInMemory(packed_levels(lm, compressor))
    weights = DecodedLevels(database, limit_bytes=1, dtype=lm.dtype, device=META)  # type: ignore[arg-type]
    model, parts = CompressibleModel(lm, space, weights), token_windows(2, 20).split(1)
    with pytest.raises(NotImplementedError, match="meta") as error:
        switch_effects(model, space.uniform(1), parts=parts, draws=2, rng=Random(0))
    line = next(entry for entry in reversed(error.traceback) if "evopress" in str(entry.path))
    assert line.name == "<listcomp>" or line.name == "_effects", line
    assert ".cpu()" in str(line.statement)


@pytest.mark.usefixtures("no_packing_check")
def test_an_evaluation_of_drops_reads_no_value_before_its_result():
    lm = meta_model("llama")
    evaluator = Evaluator(lm, drop_space(lm, Drop()), None, EvaluatorSettings())
    with pytest.raises(RuntimeError, match="meta") as error:
        evaluator.evaluate([evaluator.space.uniform(0), evaluator.space.uniform(1)], token_windows(2, 20))
    assert [entry.name for entry in error.traceback if "evopress" in str(entry.path)][-1] == "divergences"


def test_levels_are_decoded_on_the_device_to_which_they_are_moved():
    kept = torch.ones(6, 20, dtype=torch.bool)
    weight = SparseWeight.from_dense(torch.ones(6, 20).bfloat16(), kept, num_kept=120).to(META)
    dense = weight.dense(torch.bfloat16)
    assert dense.device == META and dense.shape == (6, 20)


@pytest.mark.usefixtures("no_packing_check")
def test_learnt_rounding_copies_packed_weights_to_the_device_and_back(monkeypatch):
    lm = meta_model("llama")
    levels, local_names = packed_levels(lm, RTN(bits=(4,), group_size=16)), lm.layers(0)
    start = {local: levels[lm.layer_name(0, local)][0] for local in local_names}
    states, (kwargs, *_) = lm.embed(torch.zeros(4, 8, dtype=torch.int64, device=META))
    task = BlockTask(lm, 0, BlockChoice(), kwargs, states, states, num_held_out=1, windows_at_once=2)
    losses = count(0, -1)
    monkeypatch.setattr(BlockTask, "held_out_loss", lambda *_: next(losses))
    with pytest.raises(NotImplementedError, match="meta") as error:
        learn_block(task, start, Tuning(resolve="signround", resolve_steps=2, resolve_windows=2))
    assert [entry.name for entry in error.traceback if "evopress" in str(entry.path)][-1] == "_sent"


def test_a_gptq_sweep_reads_no_value():
    rows, U = torch.randn(12, 64, device=META), torch.ones(64, 64, device=META).triu()
    compressor, order = GPTQ(bits=(2, 4), group_size=16, act_order=False), torch.arange(64, device=META)
    hessian = _HessianParts(U, order, torch.ones(64, device=META), torch.ones(64, 64, device=META))
    rounded, losses = compressor._solve(rows, (4, 2), group_size=16, parts=hessian)
    assert rounded.codes.device == losses.device == META and rounded.codes.shape == (2, 12, 64)


def test_a_sparsegpt_sweep_reads_no_value():
    rows, U = torch.randn(12, 64, device=META), torch.ones(64, 64, device=META).triu()
    levels, losses = SparseGPT(block_size=16)._solve(rows, [(100, 50), (200, 60)], U=U, num_rows=[8, 4])
    assert levels[1][1][0].shape == (4, 64) and losses[0].device == META
    dense, kept = levels[1][1]
    assert SparseWeight.from_dense(dense, kept.bool(), num_kept=256 - 60).values.shape == (196,)


def test_a_running_hessian_reads_no_value():
    running = RunningHessian(500, device=META)
    running.update(torch.randn(30, 500, device=META).bfloat16())
    assert running.mean.device == META and running.num_tokens == 30


def test_reads_are_counted():
    reads = [bool, float, lambda x: x.tolist(), torch.Tensor.item, torch.Tensor.nonzero, lambda x: x[x > 0]]
    for read in reads:
        with counted() as account:
            read(torch.ones(1))
        assert account.waits >= 1, read


@pytest.mark.parametrize(
    ("compressor", "expected"),
    [
        (RTN(bits=(2, 3, 4), group_size=16), 2),
        (GPTQ(bits=(2, 3, 4), group_size=16), 4),
        (Magnitude(step=10, num_levels=3), 1),
        (Wanda(step=10, num_levels=3), 2),
        (SparseGPT(step=10, num_levels=3, block_size=16), 2),
        (GGUF(types=("Q8_0", "Q5_1", "Q4_K", "Q2_K")), 4),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_reads_of_a_group_do_not_grow_with_its_layers(compressor: Compressor, expected: int):
    X = torch.randn(300, 256)
    for rows in ((32,), (32, 16, 16)):
        names, weights = tuple(f"layer{i}" for i in range(len(rows))), tuple(torch.randn(count, 256) for count in rows)
        group = LayerGroup(names, weights, X.t() @ X if compressor.needs_hessian else None)
        with counted() as account:
            compressor.compress(group)
        assert account.waits == expected
