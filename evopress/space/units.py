"""Units and their levels, the space of all units of a model, and profiles: one level per unit."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from evopress.space.level_arrays import LevelArrays, as_levels, padded

Profile = tuple[int, ...]
"""One level index per unit, in the order of `Space.units`. Index 0 is the least compressed level."""

OUTSIDE = -1
"""Stands in for a block index for the layers that belong to no block: the embeddings and the head."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """One way to store a unit.

    `label` is for people ("3bit", "0.62", "dropped"), and `value` is the same as a number (3, 0.62, 1). `cost` is an
    exact integer. It counts what the budget limits: bits of weight codes, weights kept, units kept, or bytes.
    `size_bytes` is the size in a file, including scales and zero points.
    """

    label: str
    value: float
    cost: int
    size_bytes: int


KEPT = Level(label="kept", value=0, cost=0, size_bytes=0)
"""The level of a kept parent. Its weights belong to the units inside it, so it costs only its cache, if it has one."""

DROPPED = Level(label="dropped", value=1, cost=0, size_bytes=0)
"""The level of a dropped parent, and of every unit inside one."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What receives one level: a layer, several layers tied together, or something that may be dropped as a whole.

    `layers` are full module names. A unit without layers is kept or dropped: an attention, an MLP, or blocks. `kind`
    is the same for corresponding units of all blocks ("self_attn.q_proj", "attention"). Units with the same
    `trade_group` may trade levels. `blocks` are the indices of the blocks to which the unit belongs; empty for the
    embeddings and the head.

    `parent` is the name of the unit that contains this one, with the levels `KEPT` and `DROPPED`. While the parent is
    dropped, this unit costs nothing and its level has no effect.
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
    """All units of a model, in block order. `fixed_bytes` is the size of the rest of the model in a file.

    `fixed_cost` is a cost that no level changes, in addition to `fixed_bytes`: the bytes of caches that every profile
    has, or the nanoseconds of everything without levels. It is 0 for budgets of other metrics.

    If two budgets must hold at once, costs are shares of both, and `priced` has the space with the costs of each.
    """

    units: tuple[Unit, ...]
    fixed_bytes: int = 0
    fixed_cost: int = 0
    priced: tuple["Space", ...] = ()

    def __len__(self) -> int:
        return len(self.units)

    @cached_property
    def num_weights(self) -> int:
        """Number of weights in all units."""
        return sum(unit.num_weights for unit in self.units)

    @cached_property
    def trade_groups(self) -> dict[str, tuple[int, ...]]:
        """Indices of the units of each trade group. Groups and indices are in the order of the units."""
        members: dict[str, list[int]] = {}
        for index, unit in enumerate(self.units):
            members.setdefault(unit.trade_group, []).append(index)
        return {group: tuple(indices) for group, indices in members.items()}

    @cached_property
    def trade_group_arrays(self) -> list[np.ndarray]:
        """The indices of each trade group as an array, int64."""
        return [np.array(indices, dtype=np.int64) for indices in self.trade_groups.values()]

    @cached_property
    def parents(self) -> tuple[int | None, ...]:
        """The index of each unit's parent; None for a unit without one."""
        index_of = {unit.name: index for index, unit in enumerate(self.units)}
        return tuple(None if unit.parent is None else index_of[unit.parent] for unit in self.units)

    @cached_property
    def children(self) -> dict[int, tuple[int, ...]]:
        """Indices of the units inside each parent, by the parent's index."""
        children: dict[int, tuple[int, ...]] = {}
        for index, parent in enumerate(self.parents):
            if parent is not None:
                children[parent] = (*children.get(parent, ()), index)
        return children

    @cached_property
    def arrays(self) -> LevelArrays:
        """What the units and their levels cost, as arrays."""
        return LevelArrays(
            costs=padded([[level.cost for level in unit.levels] for unit in self.units]),
            sizes_bytes=padded([[level.size_bytes for level in unit.levels] for unit in self.units]),
            num_levels=np.array([len(unit.levels) for unit in self.units], dtype=np.int64),
            parents=np.array([-1 if parent is None else parent for parent in self.parents], dtype=np.int64),
        )

    @cached_property
    def is_depth_pruning(self) -> bool:
        """Whether every unit is only kept or dropped, so that no layer has levels."""
        return not any(unit.layers for unit in self.units)

    def is_inside_dropped(self, index: int, profile: Sequence[int]) -> bool:
        """Whether the unit's parent is dropped."""
        parent = self.parents[index]
        return parent is not None and profile[parent] > 0

    def normalized(self, profile: Profile) -> Profile:
        """The profile with all units inside dropped parents at level 0.

        Two profiles describe the same model if and only if they are equal after this.
        """
        if not self.children:
            return profile
        return tuple(0 if self.is_inside_dropped(index, profile) else level for index, level in enumerate(profile))

    def tradable_units(self, profile: Sequence[int], members: Iterable[int]) -> list[int]:
        """Those of `members` that may trade levels: all except parents and units inside a dropped parent."""
        if not self.children:
            return list(members)
        return [index for index in members if index not in self.children and not self.is_inside_dropped(index, profile)]

    def uniform(self, level: int) -> Profile:
        """The profile with every unit at `level`, or at its last one if it has fewer levels. All parents are kept."""
        return tuple(
            0 if index in self.children else min(level, len(unit.levels) - 1) for index, unit in enumerate(self.units)
        )

    def level(self, index: int, profile: Sequence[int]) -> Level:
        """The level of a unit under `profile`; `DROPPED` if its parent is dropped."""
        return DROPPED if self.is_inside_dropped(index, profile) else self.units[index].levels[profile[index]]

    def cost(self, profile: Sequence[int] | np.ndarray, members: Iterable[int] | None = None) -> int:
        """Sum of the level costs of `members` (default: all units)."""
        costs = self.arrays.chosen(self.arrays.costs, as_levels(profile))
        if members is None:
            return int(costs.sum())
        indices = members if isinstance(members, np.ndarray) else np.fromiter(members, dtype=np.int64)
        return int(costs[indices].sum())

    def size_bytes(self, profile: Profile) -> int:
        """Bytes of the whole model in a file, including what is not compressed."""
        return self.fixed_bytes + int(self.arrays.chosen(self.arrays.sizes_bytes, as_levels(profile)).sum())

    def check(self, profile: Profile) -> None:
        """Raises ValueError unless `profile` gives every unit a level that it has."""
        if len(profile) != len(self.units):
            raise ValueError(f"the profile has {len(profile)} entries but the model has {len(self.units)} units")
        for unit, level in zip(self.units, profile, strict=True):
            if not 0 <= level < len(unit.levels):
                raise ValueError(f"{unit.name} has levels 0 to {len(unit.levels) - 1}, not {level}")

    def with_trade_groups(self, trade: str) -> "Space":
        """The same space with trade groups by `size` (number of weights), by `kind`, or with a single one (`any`)."""
        group_of: Mapping[str, Callable[[Unit], str]] = {
            "size": lambda unit: str(unit.num_weights),
            "kind": lambda unit: unit.kind,
            "any": lambda unit: "all",
        }
        return replace(self, units=tuple(replace(unit, trade_group=group_of[trade](unit)) for unit in self.units))

    def with_costs_in_bytes(self) -> "Space":
        """The same space with the size of each level in bytes as its cost."""

        def in_bytes(unit: Unit) -> Unit:
            return replace(unit, levels=tuple(replace(level, cost=level.size_bytes) for level in unit.levels))

        return replace(self, units=tuple(in_bytes(unit) for unit in self.units))
