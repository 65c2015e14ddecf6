"""What a profile chooses for each block, and for the embeddings and the head."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from evopress.models.structure import ModelStructure
from evopress.space.droppable import subblocks_of
from evopress.space.units import Profile, Space

LayerLevel = tuple[str, int]
"""The name of a layer and its level."""


@dataclass(frozen=True)
class BlockChoice:
    """What a profile chooses for one block: (local name, level) of its layers, and the dropped sub-blocks.

    Layers that keep their dense weight, and layers inside dropped sub-blocks, have no entry in `levels`.
    """

    levels: tuple[LayerLevel, ...] = ()
    dropped: frozenset[str] = frozenset()

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:  # cached, because a block may have hundreds of layers
        return hash((self.levels, self.dropped))


DENSE = BlockChoice()


@dataclass(frozen=True)
class _Layer:
    """A layer at each of its levels, and the places in the block of its unit and of the unit's parent, if any."""

    levels: tuple[LayerLevel, ...]
    place: int
    parent: int | None


@dataclass(frozen=True)
class _Block:
    """A block: the indices of its units, its layers, and (place, sub-blocks) of each unit that may be dropped."""

    units: tuple[int, ...]
    layers: tuple[_Layer, ...]
    drops: tuple[tuple[int, tuple[str, ...]], ...]

    def choice(self, levels: Sequence[int]) -> BlockChoice:
        """The choice for the block, from the levels of its units."""
        chosen = (layer for layer in self.layers if layer.parent is None or not levels[layer.parent])
        dropped = (subblock for place, subblocks in self.drops if levels[place] for subblock in subblocks)
        return BlockChoice(tuple(layer.levels[levels[layer.place]] for layer in chosen), frozenset(dropped))


class Choices:
    """Reads profiles of a space, block by block. The units are grouped by block once, when the object is made."""

    def __init__(self, space: Space, lm: ModelStructure):
        units_of_blocks: list[list[int]] = [[] for _ in range(lm.num_blocks)]
        for index, unit in enumerate(space.units):
            for block in unit.blocks:
                units_of_blocks[block].append(index)
        self._blocks = [
            _block(space, prefix=f"{lm.block_names[block]}.", units=units)
            for block, units in enumerate(units_of_blocks)
        ]
        self._outside = [
            (layer, index) for index, unit in enumerate(space.units) if not unit.blocks for layer in unit.layers
        ]

    def of(self, profile: Profile | None) -> list[BlockChoice]:
        """The choice for every block under `profile`; None stands for the dense model."""
        return self.of_all([profile])[0]

    def of_all(self, profiles: Iterable[Profile | None]) -> list[list[BlockChoice]]:
        """The choices under each profile. Profiles that agree on a block share one object there."""
        known: list[dict[tuple[int, ...], BlockChoice]] = [{} for _ in self._blocks]

        def choice(profile: Profile, number: int) -> BlockChoice:
            block, choices = self._blocks[number], known[number]
            levels = tuple(map(profile.__getitem__, block.units))
            if levels not in choices:
                choices[levels] = block.choice(levels)
            return choices[levels]

        numbers = range(len(self._blocks))
        return [[DENSE if profile is None else choice(profile, number) for number in numbers] for profile in profiles]

    def outside(self, profile: Profile | None) -> tuple[LayerLevel, ...]:
        """Full names of the embeddings and the head with their levels. Empty if the space does not contain them."""
        return () if profile is None else tuple((layer, profile[index]) for layer, index in self._outside)


def _block(space: Space, *, prefix: str, units: Sequence[int]) -> _Block:
    place_of = {index: place for place, index in enumerate(units)}

    def layer_of(index: int, name: str) -> _Layer:
        local, parent = name.removeprefix(prefix), space.parents[index]
        levels = tuple((local, level) for level in range(len(space.units[index].levels)))
        return _Layer(levels, place_of[index], None if parent is None else place_of[parent])

    return _Block(
        units=tuple(units),
        layers=tuple(layer_of(index, name) for index in units for name in space.units[index].layers),
        drops=tuple(
            (place_of[index], subblocks_of(space.units[index])) for index in units if not space.units[index].layers
        ),
    )
