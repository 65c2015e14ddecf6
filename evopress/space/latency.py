"""The budget `latency`: seconds of one step of generation, from a table of measured times.

In a step, each of `batch` sequences, which have `length` tokens in their caches, gets one more token. The time of a
profile is the sum over its layers, kept attentions and the rest of the model::

    layers       by shape and level, such as 576x576 and 4bit
    attention    of one block, in addition to its layers: reading the cache
    rest         everything that a search does not change: head, norms

A table is a JSON or YAML file, measured on the machine that will run the model, with torch or with any engine.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, field_validator

from evopress.models.active_experts import share_of_tokens
from evopress.models.structure import ModelStructure
from evopress.runtime.config_class import UserPath, config_class
from evopress.space.attention_costs import with_attention_costs
from evopress.space.budget import Budget, Cap
from evopress.space.build import LevelSource
from evopress.space.droppable import subblocks_of
from evopress.space.seconds import in_seconds, parse_seconds
from evopress.space.shapes import LayerShape, layer_shape
from evopress.space.units import OUTSIDE, Profile, Space, Unit

log = logging.getLogger(__name__)

NANOSECONDS = 1e9
"""Nanoseconds in a second: costs are whole nanoseconds, so that sums are exact."""

DENSE = "dense"
"""The name in a table of a layer that is not compressed."""


@dataclass(frozen=True)
class LatencyTable:
    """Seconds of one step. `layers` are by shape ("ROWSxCOLS") and label of the level; `device` is for people."""

    batch: int
    length: int
    layers: Mapping[str, Mapping[str, float]]
    attention: float
    rest: float
    device: str = ""

    def cost(self, layer: LayerShape, label: str) -> int:
        """Nanoseconds of a layer at a level, rounded up. Raises ValueError if the table does not have this time."""
        of_shape = self.layers.get(shape_name(layer.rows, layer.cols), {})
        if label not in of_shape:
            raise ValueError(
                f"the table of times has no time for layers of {shape_name(layer.rows, layer.cols)} at level {label!r} "
                f"({layer.name}): add this time to the file, or measure a new table with these levels"
            )
        return ceil(of_shape[label] * NANOSECONDS)


def shape_name(rows: int, cols: int) -> str:
    """The name of a shape in a table."""
    return f"{rows}x{cols}"


def read_table(path: str) -> LatencyTable:
    """Read a table. Raises ValueError if the file does not exist or is not a table."""
    file = Path(path)
    if not file.is_file():
        raise ValueError(
            f"the table of times {path!r} is not a file: run with stages=[plan] to measure it on this machine, or set "
            "budget.table to a file"
        )
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))  # JSON is YAML too
        layers = {
            str(shape): {str(label): float(seconds) for label, seconds in of_shape.items()}
            for shape, of_shape in values["layers"].items()
        }
        numbers = {key: float(values[key]) for key in ("attention", "rest")}  # YAML reads 5e-06 as text
        table = LatencyTable(**{**values, **numbers, "layers": layers})
        if not all(number >= 0 for times in (numbers, *layers.values()) for number in times.values()):
            raise ValueError("a time is negative")
    except (AttributeError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"the table of times {path!r} cannot be read ({type(error).__name__}: {error}): it must have batch, "
            "length, layers (shape: level: seconds), attention and rest"
        ) from error
    return table


def table_json(table: LatencyTable) -> str:
    """The content of a file that `read_table` reads."""
    return json.dumps(asdict(table), indent=1) + "\n"


@config_class
class LatencyBudget(Budget):
    """Seconds of one step of generation.

    Attributes:
        target: The time of a step, such as 20ms.
        table: A file with measured times, see `LatencyTable`.
        batch: Sequences at once. The table must be for the same number.
        length: Tokens in the cache of each sequence. The table must be for the same number.
    """

    metric: Literal["latency"] = "latency"
    table: UserPath
    batch: int = Field(default=1, gt=0)
    length: int = Field(default=512, gt=0)

    @field_validator("target", mode="before")
    @classmethod
    def _parse_number(cls, target: object) -> object:
        parse_seconds(str(target))
        return target

    def __post_init__(self) -> None:
        """The target is checked by `_parse_number`."""

    @property
    def remedy(self) -> str:
        return "raise budget.target, or add faster levels to compress"

    def read_table(self) -> LatencyTable:
        """The table. Raises ValueError if it cannot be read, or is for another batch or length."""
        table = read_table(self.table)
        if (table.batch, table.length) != (self.batch, self.length):
            raise ValueError(
                f"the table of times {self.table!r} is for batch {table.batch} and length {table.length}: set "
                "budget.batch and budget.length to these, or measure another table"
            )
        return table

    @property
    def identity(self) -> dict[str, object]:
        """The settings, with the content of the table in place of its path."""
        return {**asdict(self), "table": asdict(self.read_table())}  # type: ignore[call-overload]

    def caps(self, space: Space) -> tuple[Cap, ...]:
        """One cap on all units: the nanoseconds of the target, less the time of everything that does not change."""
        target = int(parse_seconds(self.target) * int(NANOSECONDS))
        return (Cap(tuple(range(len(space))), target - space.fixed_cost),)

    def achieved(self, space: Space, profile: Profile) -> float:
        return (space.cost(profile) + space.fixed_cost) / NANOSECONDS

    def amount(self, space: Space, profile: Profile) -> str:
        return in_seconds(self.achieved(space, profile))

    def facts(self, space: Space, profile: Profile) -> dict[str, object]:
        settings = {"batch": self.batch, "length": self.length, "device": self.read_table().device}
        return {**super().facts(space, profile), **settings}

    def __str__(self) -> str:
        return f"{self.target} per step"


def with_latencies(space: Space, model: ModelStructure, levels: LevelSource | None, table: LatencyTable) -> Space:
    """The space with the nanoseconds of each level as its cost. `levels` is None if the space only drops sub-blocks."""
    slower: set[str] = set()

    def cost_of(block: int, layer: LayerShape, label: str) -> int:
        if layer.name in model.embedding_and_head[:-1]:
            return 0  # a look-up
        local = layer.name.removeprefix(f"{model.block_names[block]}.") if block >= 0 else layer.name
        return ceil(table.cost(layer, label) * (share_of_tokens(model, block, local) if block >= 0 else 1))

    def costs_of(unit: Unit) -> list[int]:
        if not unit.layers and not unit.num_weights:  # its layers are units of their own
            return [0] * len(unit.levels)
        if not unit.layers:
            names = [(block, name) for block in unit.blocks for name in _layers_of(model, unit, block)]
            kept = sum(cost_of(block, layer_shape(model, name), DENSE) for block, name in names)
            return [kept, 0][: len(unit.levels)]
        assert levels is not None
        block = unit.blocks[0] if unit.blocks else OUTSIDE
        shapes = [layer_shape(model, name) for name in unit.layers]
        labels = [[level.label for level in levels.levels(shape)] for shape in shapes]
        measured = [
            sum(cost_of(block, shape, of_layer[level]) for shape, of_layer in zip(shapes, labels, strict=True))
            for level in range(len(unit.levels))
        ]
        counted = without_slower_levels(measured)
        slower.update(unit.kind for one, other in zip(measured, counted, strict=True) if one != other)
        return counted

    units = [
        replace(unit, levels=tuple(replace(level, cost=cost) for level, cost in zip(unit.levels, costs, strict=True)))
        for unit, costs in ((unit, costs_of(unit)) for unit in space.units)
    ]
    if slower:
        log.warning(
            "in the table of times, some levels are slower than less compressed ones (%s), so the less compressed ones "
            "count as just as slow: leave the slow levels out of compress to avoid this",
            ", ".join(sorted(slower)),
        )
    attention = ceil(table.attention * NANOSECONDS)
    priced = with_attention_costs(replace(space, units=tuple(units)), [attention] * model.num_blocks)
    return replace(priced, fixed_cost=priced.fixed_cost + ceil(table.rest * NANOSECONDS))


def _layers_of(model: ModelStructure, unit: Unit, block: int) -> list[str]:
    """Full names of the layers of a droppable unit in a block."""
    return [
        model.layer_name(block, local)
        for subblock in subblocks_of(unit)
        for local in model.subblock_layers(block, subblock)
    ]


def without_slower_levels(costs: list[int]) -> list[int]:
    """The costs of the levels of a unit, at least as large as those of all later levels.

    Searches expect that a more compressed level is never more expensive. So a level counts as no faster than the
    slowest of those after it, and the time of a profile is never underestimated.
    """
    return [max(costs[level:]) for level in range(len(costs))]
