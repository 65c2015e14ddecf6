"""Small databases: a weight of every kind, and builds for tiny models that can be recorded or killed."""

from dataclasses import asdict
from math import inf
from pathlib import Path

import torch

from evopress.compressors.base import CompressedGroup, Compressor, LayerGroup
from evopress.compressors.gptq import GPTQ
from evopress.database.build import BatchLimits, build_database
from evopress.database.store import BlockLevels, Database
from evopress.models.language_model import LanguageModel
from evopress.weights.base import CompressedWeight
from evopress.weights.dense import Dropped, Kept
from evopress.weights.integer import QuantizedWeight
from evopress.weights.sparse import SparseWeight
from tests.tiny_models import token_windows

IDENTITY = {"model": "tiny", "settings": {"bits": [2, 3], "damp": 0.01}}
WINDOWS = token_windows(10, 20)
BITS = GPTQ(bits=(4, 3, 2), group_size=32, propagate_bits=3)
PROPAGATED = 1
"""The level of `BITS` at which blocks are propagated."""


def random_weight(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantized(rows: int, cols: int, bits: int, *, symmetric: bool = False, seed: int = 0) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(2**bits, (rows, cols), generator=generator).to(torch.uint8)
    zeros = None if symmetric else torch.randint(2**bits, (rows, 2), generator=generator).to(torch.uint8)
    return QuantizedWeight.from_codes(codes, random_weight(rows, 2, seed=seed).abs().half(), zeros=zeros, bits=bits)


WEIGHTS: dict[str, CompressedWeight] = {
    **{f"{bits} bits": quantized(6, 32, bits) for bits in range(2, 9)},
    "symmetric": quantized(5, 14, 3, symmetric=True),
    "half the weights": SparseWeight.from_dense(random_weight(5, 13).bfloat16(), random_weight(5, 13, seed=1) > 0),
    "all weights": SparseWeight.from_dense(random_weight(5, 13), torch.ones(5, 13, dtype=torch.bool)),
    "no weights": SparseWeight.from_dense(random_weight(5, 13), torch.zeros(5, 13, dtype=torch.bool)),
    "kept": Kept(random_weight(4, 7).bfloat16()),
    "dropped": Dropped(4, 7),
}


def block_levels(weights: list[CompressedWeight], layer: str = "layers.0.q") -> BlockLevels:
    return BlockLevels({layer: weights}, {layer: [0.1 * index for index in range(len(weights))]}, ("a note",))


def open_database(root: Path, identity: dict | None = None) -> Database:
    return Database.open(root, "gptq", identity or IDENTITY)


class Killed(BaseException):
    """Acts like a kill: nothing in the program catches it."""


def recording_gptq(lives: int = 10**6, *, weigh_tokens: bool = True) -> tuple[GPTQ, list[LayerGroup]]:
    """`BITS`, killed after `lives` groups, and the list of the groups that it receives."""
    groups: list[LayerGroup] = []

    class Recording(GPTQ):
        def compress(self, group: LayerGroup) -> CompressedGroup:
            if len(groups) == lives:
                raise Killed
            assert group.hessian is not None
            weights = tuple(weight.clone() for weight in group.weights)
            groups.append(LayerGroup(group.names, weights, group.hessian.clone()))
            return super().compress(group)

    return Recording(**{**asdict(BITS), "weigh_tokens": weigh_tokens}), groups


def database_in(root: Path) -> Database:
    return Database.open(root, "test", {"model": "tiny"})


def built(
    lm: LanguageModel, compressor: Compressor, root: Path, batch_tokens: int = 60, states_gb: float = inf
) -> Database:
    limits = BatchLimits(batch_tokens=batch_tokens, states_gb=states_gb)
    build_database(lm, compressor, WINDOWS, database_in(root), limits=limits)
    return database_in(root)
