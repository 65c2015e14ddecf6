"""The searched model as checkpoint formats read it."""

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from transformers import PreTrainedModel

from evopress.database.cache import DecodedLevels
from evopress.export.block_selection import tensors_of_blocks
from evopress.export.state import State, cast_for_file, untied_tensors
from evopress.models.language_model import LanguageModel
from evopress.models.subblocks import SUBBLOCKS
from evopress.space.apply import applied
from evopress.space.choices import BlockChoice, Choices
from evopress.space.units import OUTSIDE, Profile, Space
from evopress.weights.base import CompressedWeight

T = TypeVar("T")


@dataclass(frozen=True)
class SearchedModel:
    """A model with the profile that was chosen for it. `weights` is None if the space only drops sub-blocks."""

    lm: LanguageModel
    space: Space
    profile: Profile
    weights: DecodedLevels | None = None

    @cached_property
    def choices(self) -> list[BlockChoice]:
        """The levels and dropped sub-blocks of each block."""
        return self._chosen.of(self.profile)

    @cached_property
    def _chosen(self) -> Choices:
        return Choices(self.space, self.lm)

    @cached_property
    def levels(self) -> dict[str, tuple[int, int]]:
        """Block and level of every compressed layer, by full module name. Embeddings and head have block `OUTSIDE`."""
        in_blocks = {
            self.lm.layer_name(block, local): (block, level)
            for block, choice in enumerate(self.choices)
            for local, level in choice.levels
        }
        return in_blocks | {name: (OUTSIDE, level) for name, level in self._chosen.outside(self.profile)}

    @property
    def level_bytes(self) -> int:
        """Bytes of all compressed layers, from the sizes in the space."""
        return self.space.size_bytes(self.profile) - self.space.fixed_bytes

    @property
    def kept_blocks(self) -> list[int]:
        """Blocks whose attention, MLP or both are kept."""
        return [block for block, choice in enumerate(self.choices) if len(choice.dropped) < len(SUBBLOCKS)]

    @property
    def half_dropped(self) -> dict[int, str]:
        """The dropped sub-block of every block that loses only one."""
        return {
            block: next(iter(choice.dropped)) for block, choice in enumerate(self.choices) if len(choice.dropped) == 1
        }

    def renumbered(self, by_name: Mapping[str, T]) -> dict[str, T]:
        """The entries outside dropped blocks, by their names in a checkpoint that leaves dropped blocks out."""
        return tensors_of_blocks(by_name, self.lm, blocks=self.kept_blocks)

    def is_dropped(self, name: str) -> bool:
        """Whether a tensor of the model belongs to a layer of a dropped sub-block."""
        return name.startswith(self._dropped_modules)

    @cached_property
    def _dropped_modules(self) -> tuple[str, ...]:
        return tuple(
            f"{self.lm.block_names[block]}.{self.lm.subblock_path(block, subblock)}."
            for block, choice in enumerate(self.choices)
            for subblock in choice.dropped
        )

    def untied_name(self, name: str) -> str:
        """The name under which a tensor of the model is stored. A tied head is stored as the embeddings."""
        head = self.lm.family.head
        is_tied_head = name == f"{head}.weight" and head not in self.lm.embedding_and_head
        return f"{self.lm.embeddings_name}.weight" if is_tied_head else name

    def packed(self, layer: str) -> CompressedWeight:
        """The chosen level of a layer, from the database. Raises KeyError for a layer that is not compressed."""
        assert self.weights is not None
        block, level = self.levels[layer]
        return self.weights.database.read(block, layer, level)

    @cached_property
    def weight_kinds(self) -> frozenset[type[CompressedWeight]]:
        """The kinds of weight among the chosen levels."""
        return frozenset(type(self.packed(layer)) for layer in self.levels)

    def applied(self) -> AbstractContextManager[PreTrainedModel]:
        """While open, the model itself is the searched one."""
        return applied(self.lm, self.space, self.weights, self.profile)

    def dense_state(self, dtype: torch.dtype, *, excluded: Collection[str] = ()) -> State:
        """All tensors of the model: floating-point ones in `dtype`, compressed layers decoded, tied tensors once.

        Dropped sub-blocks are included. The weights of the layers in `excluded` are not.
        """
        names = {f"{layer}.weight" for layer in excluded}
        state = {name: tensor for name, tensor in untied_tensors(self.lm.model).items() if name not in names}
        for layer in self.levels.keys() - set(excluded):
            state[f"{layer}.weight"] = self.packed(layer).dense(dtype)
        return {name: cast_for_file(tensor, dtype) for name, tensor in state.items()}

    def uncompressed_tensors(self) -> State:
        """All tensors that have no levels, such as norms and biases, by their names in the checkpoint."""
        compressed = {f"{layer}.weight" for layer in self.levels}
        tensors = untied_tensors(self.lm.model)
        return self.renumbered({name: tensor for name, tensor in tensors.items() if name not in compressed})
