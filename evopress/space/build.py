"""Builds the space of a model: its units, and the levels that a compressor offers for each of them."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal, Protocol

from evopress.models.families import Groups
from evopress.models.family_match import expert_of
from evopress.models.structure import ModelStructure
from evopress.space.droppable import droppable_units, subblocks_of
from evopress.space.settings import SpaceSettings
from evopress.space.shapes import BlockShape, LayerShape, block_shapes, layer_shape
from evopress.space.units import DROPPED, KEPT, Level, Space, Unit

FILE_WEIGHT_BYTES = 2
"""Bytes of an uncompressed weight in a checkpoint (bfloat16 or float16)."""


class LevelSource(Protocol):
    """What a space needs from a compressor: the levels of a layer."""

    @property
    def compresses_embeddings(self) -> bool:
        """Whether the embeddings and the head have levels too."""

    def levels(self, layer: LayerShape) -> Sequence[Level]:
        """The levels of a layer, least compressed first."""


class DropRule(Protocol):
    """What a space needs from depth pruning: the parts of a model that may be dropped."""

    def units(self, blocks: Sequence[BlockShape]) -> list[Unit]:
        """The droppable units of a model, in block order."""


def layer_space(lm: ModelStructure, compressor: LevelSource, settings: SpaceSettings) -> Space:
    """The space with one unit per linear layer of each block, or one per group of tied layers.

    A parent (an attention, MLP or block that may be dropped) precedes the units inside it. If the compressor also
    compresses the embeddings and the head, these are the first and the last unit, and belong to no block. If the two
    share a weight, they are one unit, the first.
    """
    units = [
        _block_unit(lm, compressor, block, local_name=local_name, layers=layers)
        for block in range(lm.num_blocks)
        for local_name, layers in _tied_layers(lm.layer_groups(block), settings.tie).items()
    ]
    if settings.drops != "none":
        units = _with_parents(lm, units, settings.drops, settings.tie)
    if compressor.compresses_embeddings:
        first, *last = [_layer_unit(lm, compressor, (name,), name=name, kind=name) for name in lm.embedding_and_head]
        units = [first, *units, *last]
    return Space(tuple(units), _fixed_bytes(lm, units)).with_trade_groups(settings.trade)


def drop_space(lm: ModelStructure, drop: DropRule, settings: SpaceSettings | None = None) -> Space:
    """The space with one unit per attention and per MLP, per block, or per pair of blocks."""
    units = drop.units(block_shapes(lm))
    if settings and settings.tie == "engine":
        units = _with_first_attention_kept(units)
    return Space(tuple(units), _fixed_bytes(lm, units))


def dense_bytes(lm: ModelStructure) -> int:
    """Bytes of the uncompressed model in a 16-bit file. Shared parameters count once."""
    return FILE_WEIGHT_BYTES * sum(parameter.numel() for parameter in lm.model.parameters())


def _fixed_bytes(lm: ModelStructure, units: Iterable[Unit]) -> int:
    """Bytes in a 16-bit file of all parameters that belong to no unit."""
    return dense_bytes(lm) - FILE_WEIGHT_BYTES * sum(unit.num_weights for unit in units)


def _tied_layers(groups: Groups, tie: str) -> dict[str, tuple[str, ...]]:
    """Local names of the layers of each unit in a block, by the local name of the unit."""
    if tie == "block":
        layers = tuple(local for group in groups for local in group)
        return {"+".join(layers): layers}
    layers_of: dict[str, tuple[str, ...]] = {}
    for group in groups:
        expert = expert_of(group[0])
        if expert and tie != "none":
            experts, number, _ = expert
            name = experts if tie == "engine" else f"{experts}.{number}"
            layers_of[name] = layers_of.get(name, ()) + group
        elif tie == "engine":
            layers_of["+".join(group)] = group
        else:
            layers_of.update({local: (local,) for local in group})
    return layers_of


def _block_unit(
    lm: ModelStructure, compressor: LevelSource, block: int, *, local_name: str, layers: tuple[str, ...]
) -> Unit:
    """One unit made of some layers of a block. `local_name` joins their local names, or names the experts they form."""
    names = tuple(lm.layer_name(block, local) for local in layers)
    forms_experts = len(local_name.split("+")) != len(names)
    name = lm.layer_name(block, local_name) if forms_experts else "+".join(names)
    kind = re.sub(r"\.\d+(?=\.|$)", ".*", local_name)  # the same for all experts
    return _layer_unit(lm, compressor, names, name=name, kind=kind, blocks=(block,))


def _layer_unit(
    lm: ModelStructure,
    compressor: LevelSource,
    layers: tuple[str, ...],
    *,
    name: str,
    kind: str,
    blocks: tuple[int, ...] = (),
) -> Unit:
    shapes = [layer_shape(lm, layer) for layer in layers]
    levels_of_layers = [compressor.levels(shape) for shape in shapes]
    _check_same_levels(layers, levels_of_layers)
    return Unit(
        name=name,
        blocks=blocks,
        kind=kind,
        layers=layers,
        num_weights=sum(shape.num_weights for shape in shapes),
        levels=tuple(_summed(levels, shapes) for levels in zip(*levels_of_layers, strict=True)),
    )


def _check_same_levels(layers: Sequence[str], levels_of_layers: Sequence[Sequence[Level]]) -> None:
    """Raise ValueError if layers of one unit have different numbers of levels, as layers of different widths may."""
    names = [", ".join(level.label for level in levels) for levels in levels_of_layers]
    for other, levels in enumerate(levels_of_layers):
        if sorted(names[other].split(", ")) == sorted(names[0].split(", ")) and names[other] != names[0]:
            raise ValueError(
                f"{layers[0]} and {layers[other]} are one unit, but the first has its levels in the order {names[0]}, "
                f"and the second in the order {names[other]}: set space.tie=none, or change the levels of "
                "compress"
            )
        if len(levels) != len(levels_of_layers[0]):
            raise ValueError(
                f"{layers[0]} and {layers[other]} are one unit, but the levels of the first are {names[0]}, and those "
                f"of the second {names[other]}: set space.tie=none, or change the levels of compress"
            )


def _summed(levels: tuple[Level, ...], shapes: Sequence[LayerShape]) -> Level:
    """The level of a unit whose layers have these levels: costs and sizes add up, and different values are averaged."""
    value = levels[0].value
    if any(level.value != value for level in levels):
        total = sum(level.value * shape.num_weights for level, shape in zip(levels, shapes, strict=True))
        value = total / sum(shape.num_weights for shape in shapes)
    return replace(
        levels[0],
        value=value,
        cost=sum(level.cost for level in levels),
        size_bytes=sum(level.size_bytes for level in levels),
    )


def _with_parents(
    lm: ModelStructure, units: list[Unit], granularity: Literal["subblock", "block"], tie: str
) -> list[Unit]:
    """The given units of all blocks with their parents, each before its children."""
    droppable = droppable_units(block_shapes(lm), granularity)
    if tie == "engine":
        droppable = _with_first_attention_kept(droppable)
    parents = [replace(unit, num_weights=0, levels=(KEPT, DROPPED)[: len(unit.levels)]) for unit in droppable]
    units_and_parents: list[Unit] = []
    for block in range(lm.num_blocks):
        parents_of_block = [parent for parent in parents if block in parent.blocks]
        parent_of = {
            lm.layer_name(block, local): parent.name
            for parent in parents_of_block
            for subblock in subblocks_of(parent)
            for local in lm.subblock_layers(block, subblock)
        }
        units_and_parents += parents_of_block
        units_and_parents += [replace(unit, parent=parent_of[unit.layers[0]]) for unit in units if block in unit.blocks]
    return units_and_parents


def _with_first_attention_kept(units: list[Unit]) -> list[Unit]:
    """The units, with the attention of the first block always kept, because inference engines expect it.

    A first block that is one unit may still be dropped as a whole.
    """
    return [
        replace(unit, levels=unit.levels[:1]) if unit.kind == "attention" and 0 in unit.blocks else unit
        for unit in units
    ]
