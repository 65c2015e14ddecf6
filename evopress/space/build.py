"""Builds the space of a model: its units, and the levels that a compressor offers for them."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal, Protocol

from pydantic import model_validator

from evopress.models.families import Groups
from evopress.models.family_match import expert_of
from evopress.models.structure import ModelStructure
from evopress.runtime.config_class import config_class
from evopress.space.shapes import BlockShape, LayerShape
from evopress.space.subblocks import droppable_units, subblocks_of
from evopress.space.units import DROPPED, KEPT, Level, Space, Unit

FILE_WEIGHT_BYTES = 2
"""What an uncompressed weight takes in a checkpoint: bfloat16 or float16."""


@config_class
class SpaceSettings:
    """What the units are.

    `trade`: units that may swap levels have the same number of weights (`size`), the same `kind`, or `any` may.

    `tie`: with `engine`, layers that inference engines fuse (q, k, v; gate, up; all experts of a block) are one unit,
    and where halves of blocks are dropped the attention of the first block stays, as an engine has to meet an attention
    first; with `expert`, the layers of each expert are one unit.

    `drops`: what may be dropped as a whole besides the levels of its layers: attentions and MLPs one by one
    (`subblock`), or both of a block together (`block`).
    """

    trade: Literal["size", "kind", "any"] = "size"
    tie: Literal["none", "expert", "engine"] = "none"
    drops: Literal["none", "subblock", "block"] = "none"

    @model_validator(mode="after")
    def _what_a_drop_frees_goes_anywhere(self) -> "SpaceSettings":
        if self.drops != "none" and self.trade != "any":
            raise ValueError(
                f"space.drops={self.drops} frees bytes for layers of all sizes, which may not trade with "
                f"space.trade={self.trade}: set space.trade=any, or take space=joint"
            )
        return self


class LevelSource(Protocol):
    """The part of a compressor that a space needs: which levels a layer has."""

    @property
    def takes_ends(self) -> bool:
        """Whether the embeddings and the head have levels too."""

    def levels(self, layer: LayerShape) -> Sequence[Level]:
        """Levels of a layer, least compressed first."""


class DropRule(Protocol):
    """The part of depth pruning that a space needs: which parts of a model may be dropped."""

    def units(self, blocks: Sequence[BlockShape]) -> list[Unit]:
        """All units of a model, in block order."""


def layer_space(lm: ModelStructure, compressor: LevelSource, settings: SpaceSettings) -> Space:
    """One unit per linear layer of each block, or per group of layers when tied.

    Embeddings and head are units as well where the compressor takes them: the first and the last, or, where they share
    one weight, one unit that stands first. They lie in no block. What may be dropped stands before what is inside it.
    """
    groups = _tied(lm.layer_groups, settings.tie)
    units = [
        _block_unit(lm, compressor, block, local, group)
        for block in range(lm.num_blocks)
        for local, group in groups.items()
    ]
    if settings.drops != "none":
        units = _with_parents(lm, units, settings.drops, settings)
    if compressor.takes_ends:
        first, *last = [_layer_unit(lm, compressor, name, (), (name,), name) for name in lm.embedding_and_head]
        units = [first, *units, *last]
    return Space(tuple(units), _fixed_bytes(lm, units)).with_trade_groups(settings.trade)


def _tied(groups: Groups, tie: str) -> dict[str, tuple[str, ...]]:
    """Local names of the layers of each unit of a block, by the local name of the unit."""
    members: dict[str, tuple[str, ...]] = {}
    for group in groups:
        expert = expert_of(group[0])
        if expert and tie != "none":
            experts, number, _ = expert
            name = experts if tie == "engine" else f"{experts}.{number}"
            members[name] = members.get(name, ()) + group
        else:
            members.update({"+".join(group): group} if tie == "engine" else {local: (local,) for local in group})
    return members


def _block_unit(lm: ModelStructure, compressor: LevelSource, block: int, local: str, group: tuple[str, ...]) -> Unit:
    names = tuple(lm.layer_name(block, local) for local in group)
    is_whole_expert = len(local.split("+")) != len(names)
    name = lm.layer_name(block, local) if is_whole_expert else "+".join(names)
    return _layer_unit(lm, compressor, name, (block,), names, re.sub(r"\.\d+(?=\.|$)", ".*", local))


def _layer_unit(
    lm: ModelStructure, compressor: LevelSource, name: str, blocks: tuple[int, ...], names: tuple[str, ...], kind: str
) -> Unit:
    weights = [lm.model.get_submodule(name).get_parameter("weight") for name in names]
    options = [compressor.levels(LayerShape(name, *weight.shape)) for name, weight in zip(names, weights, strict=True)]
    levels = tuple(
        Level(
            label=same[0].label,
            value=same[0].value,
            cost=sum(level.cost for level in same),
            size_bytes=sum(level.size_bytes for level in same),
        )
        for same in zip(*options, strict=True)
    )
    return Unit(
        name=name,
        blocks=blocks,
        kind=kind,
        layers=names,
        num_weights=sum(weight.numel() for weight in weights),
        levels=levels,
    )


def _with_parents(
    lm: ModelStructure, units: list[Unit], granularity: Literal["subblock", "block"], settings: SpaceSettings
) -> list[Unit]:
    """The units of all blocks, each inside one that may be dropped."""
    droppable = droppable_units(_block_shapes(lm), granularity)
    if settings.tie == "engine":
        droppable = _for_engines(droppable)
    parents = [replace(unit, num_weights=0, levels=(KEPT, DROPPED)[: len(unit.levels)]) for unit in droppable]
    found: list[Unit] = []
    for block in range(lm.num_blocks):
        around = [parent for parent in parents if block in parent.blocks]
        parent_of = {
            lm.layer_name(block, local): parent.name
            for parent in around
            for part in subblocks_of(parent)
            for local in lm.subblock_layers(part)
        }
        found += around
        found += [replace(unit, parent=parent_of[unit.layers[0]]) for unit in units if block in unit.blocks]
    return found


def drop_space(lm: ModelStructure, drop: DropRule, settings: SpaceSettings | None = None) -> Space:
    """One unit per attention and MLP, per block, or per pair of blocks. Attentions trade with attentions only."""
    units = drop.units(_block_shapes(lm))
    if settings and settings.tie == "engine":
        units = _for_engines(units)
    return Space(tuple(units), _fixed_bytes(lm, units))


def _block_shapes(lm: ModelStructure) -> list[BlockShape]:
    def num_weights(block: int, part: str) -> int:
        return sum(lm.linear(block, local).weight.numel() for local in lm.subblock_layers(part))

    return [
        BlockShape(name, num_weights(block, "attention"), num_weights(block, "mlp"))
        for block, name in enumerate(lm.block_names)
    ]


def _for_engines(units: list[Unit]) -> list[Unit]:
    """The units with the attention of the first block kept: an engine has to meet an attention first."""
    return [
        replace(unit, levels=unit.levels[:1]) if unit.kind == "attention" and 0 in unit.blocks else unit
        for unit in units
    ]


def _fixed_bytes(lm: ModelStructure, units: Iterable[Unit]) -> int:
    """Bytes in a 16-bit file of all parameters outside the units; tied ones once."""
    total = sum(parameter.numel() for parameter in lm.model.parameters())
    return FILE_WEIGHT_BYTES * (total - sum(unit.num_weights for unit in units))


def dense_bytes(lm: ModelStructure) -> int:
    """Bytes of the uncompressed model in a 16-bit file."""
    return FILE_WEIGHT_BYTES * sum(parameter.numel() for parameter in lm.model.parameters())
