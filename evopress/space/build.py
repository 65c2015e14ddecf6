"""From a model and a compressor to the space of profiles, and from a profile to what each block is run with."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

from pydantic import model_validator
from torch import Tensor
from transformers import PreTrainedModel

from evopress.compressors.base import Compressor, LayerShape
from evopress.compressors.drop import SUBBLOCKS, BlockShape, Drop
from evopress.database.store import OUTSIDE, DecodedLevels
from evopress.models.families import Groups, expert_of
from evopress.models.language_model import LanguageModel
from evopress.runtime.config_class import config_class
from evopress.space.units import DROPPED, KEPT, Level, Profile, Space, Unit

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


@dataclass(frozen=True)
class BlockChoice:
    """What one block is run with: a level of its database per layer (local name), and the sub-blocks left out."""

    levels: tuple[tuple[str, int], ...] = ()
    dropped: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Ends:
    """Dense weights that stand in for those of the embeddings and of the head; None where the model's own stay."""

    embeddings: Tensor | None = None
    head: Tensor | None = None


def layer_space(lm: LanguageModel, compressor: Compressor, settings: SpaceSettings) -> Space:
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
        first, *last = [_layer_unit(lm, compressor, name, (), (name,), name) for name in lm.ends]
        units = [first, *units, *last]
    return Space(tuple(units), _fixed_bytes(lm, units)).regrouped(settings.trade)


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


def _block_unit(lm: LanguageModel, compressor: Compressor, block: int, local: str, group: tuple[str, ...]) -> Unit:
    names = tuple(lm.layer_name(block, local) for local in group)
    is_whole_expert = len(local.split("+")) != len(names)
    name = lm.layer_name(block, local) if is_whole_expert else "+".join(names)
    return _layer_unit(lm, compressor, name, (block,), names, re.sub(r"\.\d+(?=\.|$)", ".*", local))


def _layer_unit(
    lm: LanguageModel, compressor: Compressor, name: str, blocks: tuple[int, ...], names: tuple[str, ...], kind: str
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
    lm: LanguageModel, units: list[Unit], granularity: Literal["subblock", "block"], settings: SpaceSettings
) -> list[Unit]:
    """The units of all blocks, each inside one that may be dropped."""
    parents = [
        replace(unit, num_weights=0, levels=(KEPT, DROPPED)[: len(unit.levels)])
        for unit in _droppable(lm, Drop(granularity=granularity), settings)
    ]
    found: list[Unit] = []
    for block in range(lm.num_blocks):
        around = [parent for parent in parents if block in parent.blocks]
        parent_of = {
            lm.layer_name(block, local): parent.name
            for parent in around
            for part in parts_of(parent)
            for local in lm.layers_of(part)
        }
        found += around
        found += [replace(unit, parent=parent_of[unit.layers[0]]) for unit in units if block in unit.blocks]
    return found


def drop_space(lm: LanguageModel, drop: Drop, settings: SpaceSettings | None = None) -> Space:
    """One unit per attention and MLP, per block, or per pair of blocks. Attentions trade with attentions only."""
    units = _droppable(lm, drop, settings)
    return Space(tuple(units), _fixed_bytes(lm, units))


def _droppable(lm: LanguageModel, drop: Drop, settings: SpaceSettings | None) -> list[Unit]:
    if settings and settings.tie == "engine" and drop.granularity == "subblock":
        drop = replace(drop, keep_attention=sorted({0, *drop.keep_attention}))

    def num_weights(block: int, part: str) -> int:
        return sum(lm.linear(block, local).weight.numel() for local in lm.layers_of(part))

    shapes = [
        BlockShape(name, num_weights(block, "attention"), num_weights(block, "mlp"))
        for block, name in enumerate(lm.block_names)
    ]
    return drop.units(shapes)


def parts_of(unit: Unit) -> tuple[str, ...]:
    """Which sub-blocks a unit without layers is, of each of its blocks."""
    return SUBBLOCKS if unit.kind == "block" else (unit.kind,)


def _fixed_bytes(lm: LanguageModel, units: Iterable[Unit]) -> int:
    """Bytes in a 16-bit file of all parameters outside the units; tied ones once."""
    total = sum(parameter.numel() for parameter in lm.model.parameters())
    return FILE_WEIGHT_BYTES * (total - sum(unit.num_weights for unit in units))


def dense_bytes(lm: LanguageModel) -> int:
    """Bytes of the uncompressed model in a 16-bit file."""
    return FILE_WEIGHT_BYTES * sum(parameter.numel() for parameter in lm.model.parameters())


def by_block(space: Space, lm: LanguageModel, profile: Profile | None) -> list[BlockChoice]:
    """What every block is run with under `profile`; None is the dense model. Nothing is chosen for what is dropped."""
    choices = [BlockChoice() for _ in range(lm.num_blocks)]
    if profile is None:
        return choices
    chosen = [(block, i) for i, unit in enumerate(space.units) for block in unit.blocks]
    for block, members in groupby(sorted(chosen), key=lambda pair: pair[0]):
        choices[block] = _choice(space, lm, block, [index for _, index in members], profile)
    return choices


def _choice(space: Space, lm: LanguageModel, block: int, members: list[int], profile: Profile) -> BlockChoice:
    prefix = len(lm.block_names[block]) + 1
    levels = [
        (layer[prefix:], profile[i])
        for i in members
        if not space.is_gone(i, profile)
        for layer in space.units[i].layers
    ]
    dropped = [
        subblock
        for i in members
        if not space.units[i].layers and profile[i] > 0
        for subblock in parts_of(space.units[i])
    ]
    return BlockChoice(tuple(levels), frozenset(dropped))


def end_levels(space: Space, profile: Profile | None) -> tuple[tuple[str, int], ...]:
    """Full name and level of the embeddings and of the head, as far as `profile` chooses them."""
    pairs = zip(space.units, profile, strict=True) if profile is not None else ()
    return tuple((layer, level) for unit, level in pairs if not unit.blocks for layer in unit.layers)


def ends(lm: LanguageModel, weights: DecodedLevels | None, levels: Iterable[tuple[str, int]]) -> Ends:
    """The weights of `end_levels`."""
    found = {name: weights.get(OUTSIDE, name, level) for name, level in levels if weights is not None}
    return Ends(found.get(lm.ends[0]), found.get(lm.ends[-1]))


@contextmanager
def applied(
    lm: LanguageModel, space: Space, weights: DecodedLevels | None, profile: Profile | None
) -> Iterator[PreTrainedModel]:
    """While open, the model is the one that `profile` describes; None leaves it dense."""
    choices = by_block(space, lm, profile)
    replaced = {
        lm.layer_name(block, local): weights.get(block, lm.layer_name(block, local), level)
        for block, choice in enumerate(choices)
        for local, level in choice.levels
        if weights is not None
    }
    if weights is not None:
        replaced |= {name: weights.get(OUTSIDE, name, level) for name, level in end_levels(space, profile)}
    with lm.replaced(replaced, {block: choice.dropped for block, choice in enumerate(choices)}) as model:
        yield model
