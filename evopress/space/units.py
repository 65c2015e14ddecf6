"""What can be chosen, and a choice: units, their levels, the space they span, and profiles over it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

Profile = tuple[int, ...]
"""One level index per unit, in the order of `Space.units`. Index 0 is the least compressed level."""

OUTSIDE = -1
"""Stands for a block where layers lie in none: the embeddings and the head."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """One way to store a unit.

    `label` is for people ("3bit", "0.62", "dropped"), `value` the same as a number (3, 0.62, 1). `cost` counts what the
    budget limits, as an exact integer: bits of weight codes, weights kept, sub-blocks kept, or bytes. `size_bytes` is
    what the level takes in a file, scales and zero points included.
    """

    label: str
    value: float
    cost: int
    size_bytes: int


KEPT = Level(label="kept", value=0, cost=0, size_bytes=0)
"""Of a parent, whose weights are those of the units inside it."""

DROPPED = Level(label="dropped", value=1, cost=0, size_bytes=0)
"""Of a parent, and of everything inside it then."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What receives one level: a layer, several layers tied together, or an attention or MLP sub-block.

    `layers` are full module names; a unit without layers is a sub-block (or several) that is kept or dropped. `kind` is
    what units of different blocks have in common ("self_attn.q_proj", "attention"). Units with the same `trade_group`
    may trade levels. `blocks` are the indices of the decoder blocks that the unit lies in.

    `parent` names the unit, `KEPT` or `DROPPED`, that this one sits in. While that is dropped, this one costs nothing
    and its level has no effect.
    """

    name: str
    blocks: tuple[int, ...]
    kind: str
    layers: tuple[str, ...]
    num_weights: int
    levels: tuple[Level, ...]
    trade_group: str = "all"
    parent: str | None = None


@dataclass(frozen=True)
class Space:
    """All units of a model in block order. `fixed_bytes` is what the rest of the model takes in a file."""

    units: tuple[Unit, ...]
    fixed_bytes: int = 0

    def __len__(self) -> int:
        return len(self.units)

    @cached_property
    def num_weights(self) -> int:
        return sum(unit.num_weights for unit in self.units)

    @cached_property
    def trade_groups(self) -> dict[str, tuple[int, ...]]:
        """Indices of the units of each trade group, in order of first appearance."""
        members: dict[str, list[int]] = {}
        for index, unit in enumerate(self.units):
            members.setdefault(unit.trade_group, []).append(index)
        return {group: tuple(indices) for group, indices in members.items()}

    @cached_property
    def parents(self) -> tuple[int | None, ...]:
        """The index of the unit that each one sits in."""
        index_of = {unit.name: index for index, unit in enumerate(self.units)}
        return tuple(None if unit.parent is None else index_of[unit.parent] for unit in self.units)

    @cached_property
    def children(self) -> dict[int, tuple[int, ...]]:
        """Indices of the units inside each parent, by its own index."""
        found: dict[int, tuple[int, ...]] = {}
        for index, parent in enumerate(self.parents):
            if parent is not None:
                found[parent] = (*found.get(parent, ()), index)
        return found

    @cached_property
    def is_depth_pruning(self) -> bool:
        """Whether units are kept or dropped, and have no levels."""
        return not any(unit.layers for unit in self.units)

    def is_inside_dropped(self, index: int, profile: Sequence[int]) -> bool:
        """Whether the unit sits in a dropped one."""
        parent = self.parents[index]
        return parent is not None and profile[parent] > 0

    def normalized(self, profile: Profile) -> Profile:
        """The one of all profiles of the same model whose units inside dropped ones are at level 0."""
        if not self.children:
            return profile
        return tuple(0 if self.is_inside_dropped(index, profile) else level for index, level in enumerate(profile))

    def tradable_units(self, profile: Sequence[int], members: Iterable[int]) -> list[int]:
        """Those of `members` whose level has a price of its own: neither parents nor inside a dropped one."""
        return [index for index in members if index not in self.children and not self.is_inside_dropped(index, profile)]

    def uniform(self, level: int) -> Profile:
        """Every unit at `level`, or at its last level where it has fewer; parents are kept."""
        return tuple(
            0 if index in self.children else min(level, len(unit.levels) - 1) for index, unit in enumerate(self.units)
        )

    def level(self, index: int, profile: Sequence[int]) -> Level:
        return DROPPED if self.is_inside_dropped(index, profile) else self.units[index].levels[profile[index]]

    def cost(self, profile: Sequence[int], members: Iterable[int] | None = None) -> int:
        """Sum of the level costs of `members` (default: all units)."""
        indices = range(len(self.units)) if members is None else members
        return sum(self.level(index, profile).cost for index in indices)

    def size_bytes(self, profile: Profile) -> int:
        """Bytes of the whole model in a file: levels and everything that is not compressed."""
        return self.fixed_bytes + sum(self.level(index, profile).size_bytes for index in range(len(self)))

    def check(self, profile: Profile) -> None:
        """Raises ValueError unless `profile` names an existing level for each unit."""
        if len(profile) != len(self.units):
            raise ValueError(f"the profile has {len(profile)} entries but the model has {len(self.units)} units")
        for unit, level in zip(self.units, profile, strict=True):
            if not 0 <= level < len(unit.levels):
                raise ValueError(f"{unit.name} has levels 0 to {len(unit.levels) - 1}, not {level}")

    def with_trade_groups(self, trade: str) -> "Space":
        """The same space with trade groups by `size` (equal number of weights), `kind` or `any`."""
        keys: Mapping[str, Callable[[Unit], str]] = {
            "size": lambda unit: str(unit.num_weights),
            "kind": lambda unit: unit.kind,
            "any": lambda unit: "all",
        }
        return replace(self, units=tuple(replace(unit, trade_group=keys[trade](unit)) for unit in self.units))

    def with_costs_in_bytes(self) -> "Space":
        """The same space where the cost of a level is its size in bytes."""

        def priced(unit: Unit) -> Unit:
            return replace(unit, levels=tuple(replace(level, cost=level.size_bytes) for level in unit.levels))

        return replace(self, units=tuple(priced(unit) for unit in self.units))
