"""Reads and writes profiles as JSON, and in the text format of the paper's authors."""

import json
from collections.abc import Collection, Mapping

from evopress.runtime.json_files import dict_of_unique, parse_json
from evopress.space.droppable import subblocks_of
from evopress.space.units import Level, Profile, Space, Unit

AUTHORS_NAMES = {"attention": "attn", "mlp": "mlp"}
"""The names of the sub-blocks in the authors' files."""

Lines = list[tuple[int, str]]
"""The lines of a text that are not blank, each with its number."""


def to_json(space: Space, profile: Profile, **facts: object) -> str:
    """The profile with its units, levels and costs. `facts` (budget, seed, fingerprints, …) become top-level keys."""
    units = []
    for index, (unit, level_index) in enumerate(zip(space.units, profile, strict=True)):
        level = space.level(index, profile)
        entry = {
            "unit": unit.name,
            "level": level_index,
            "label": level.label,
            "cost": level.cost,
            "size_bytes": level.size_bytes,
        }
        units.append(entry | ({"inside": unit.parent} if unit.parent else {}))
    return json.dumps({**facts, "cost": space.cost(profile), "units": units}, indent=1) + "\n"


def from_json(space: Space, text: str) -> Profile:
    """Read what `to_json` wrote. Raises ValueError if it is not a profile of `space`."""
    try:
        entries = [(entry["unit"], entry["level"]) for entry in parse_json(text)["units"]]
        level_of = dict_of_unique(entries)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"this is not a profile: expected an object with a list `units`, each with a `unit` and a `level` ({error})"
        ) from error
    missing = [unit.name for unit in space.units if unit.name not in level_of]
    unknown = level_of.keys() - {unit.name for unit in space.units}
    if missing or unknown:
        raise ValueError(
            f"the profile is for another model: missing {missing[:3]}, unknown {sorted(map(str, unknown))[:3]}"
        )
    profile = tuple(_integer_level(unit, level_of[unit.name]) for unit in space.units)
    space.check(profile)
    return space.normalized(profile)


def _integer_level(unit: Unit, level: object) -> int:
    if type(level) is not int:  # isinstance would accept True
        raise ValueError(f"the level of {unit.name} must be an integer, not {str(level)[:50]!r}")
    return level


def to_text(space: Space, profile: Profile) -> str:
    """The profile in the format of the paper's authors.

    There is one line `layer name: level` per layer. A level is its value, or its label if other levels of the unit
    have the same value, as FP8 and INT8 do. For depth pruning, there is one line per block, with its dropped
    sub-blocks. A parent has a line as well: `name: 0`, or `name: 1` if it is dropped. The layers inside a dropped
    parent have no lines.
    """
    if space.is_depth_pruning:
        names = AUTHORS_NAMES.values()
        dropped = _dropped_by_block(space, profile)
        return "".join(f"{'+'.join(name for name in names if name in of_block) or 'none'}\n" for of_block in dropped)
    return "".join(
        f"{name}: {_in_text(unit, space.level(index, profile))}\n"
        for index, unit in enumerate(space.units)
        if not space.is_inside_dropped(index, profile)
        for name in _line_names(unit)
    )


def _in_text(unit: Unit, level: Level) -> str:
    """The value of a level, or its label if the value is not enough to recognise it."""
    values = [f"{other.value:g}" for other in unit.levels if other != level]
    return level.label if f"{level.value:g}" in values else f"{level.value:g}"


def from_text(space: Space, text: str, uniform: Profile | None = None) -> Profile:
    """Read what `to_text` wrote, or a file of the paper's authors.

    The authors write sparsities as whole steps from the uniform profile; -1 is one level denser. `uniform` is that
    profile. Without it, or if a number in the file is not whole, the numbers are values of levels. A parent without a
    line is kept.

    Raises:
        ValueError: A line, layer or level is unknown, missing or given twice.
    """
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    return _parse_blocks(space, lines) if space.is_depth_pruning else _parse_layers(space, lines, uniform)


def _parse_layers(space: Space, lines: Lines, uniform: Profile | None) -> Profile:
    value_of = _parse_values(lines, labels={level.label for unit in space.units for level in unit.levels})
    unknown = value_of.keys() - {name for unit in space.units for name in _line_names(unit)}
    if unknown:
        raise ValueError(f"the model has no layer {min(unknown)!r}")
    dropped = {unit.name for unit in space.units if not unit.layers and value_of.get(unit.name)}
    values = [
        _unit_value(unit, value_of, is_optional=not unit.layers or unit.parent in dropped) for unit in space.units
    ]
    if uniform is not None and all(_is_step(value) for value in values):
        profile = tuple(level + int(step or 0) for level, step in zip(uniform, values, strict=True))
    else:
        profile = tuple(_level_of_value(unit, value) for unit, value in zip(space.units, values, strict=True))
    space.check(profile)
    return space.normalized(profile)


def _is_step(value: float | str | None) -> bool:
    return value is None or (isinstance(value, float) and value.is_integer())


def _parse_values(lines: Lines, *, labels: Collection[str]) -> dict[str, float | str]:
    """The value or the label on each line, by the name of the layer or parent. A label that is a number is a value."""
    value_of: dict[str, float | str] = {}
    for number, line in lines:
        name, _, value = line.rpartition(":")
        try:
            if name.strip() in value_of:
                raise ValueError("given twice")
            is_label = value.strip() in labels and not value.strip()[0].isdigit()
            value_of[name.strip()] = value.strip() if is_label else float(value)
        except ValueError as error:
            raise ValueError(f"line {number}, {line[:100]!r}, is not `layer name: level` ({error})") from error
    return value_of


def _line_names(unit: Unit) -> tuple[str, ...]:
    return unit.layers or (unit.name,)


def _unit_value(unit: Unit, value_of: Mapping[str, float | str], *, is_optional: bool) -> float | str | None:
    """The one value that all layers of a unit have; None for an optional unit if none of its layers has a line."""
    names = _line_names(unit)
    if is_optional and value_of.keys().isdisjoint(names):
        return None
    values = {value_of[name] for name in names if name in value_of}
    if len(values) != 1 or any(name not in value_of for name in names):
        given = sorted(values, key=str) or "none"
        raise ValueError(f"{unit.name} needs exactly one level, but the profile gives {given}")
    return values.pop()


def _level_of_value(unit: Unit, value: float | str | None) -> int:
    if value is None:
        return 0
    wanted = value if isinstance(value, str) else f"{value:g}"
    known = [_in_text(unit, level) for level in unit.levels]
    for index, level in enumerate(unit.levels):
        if wanted in (known[index], level.label):
            return index
    raise ValueError(f"{unit.name} has no level {wanted}; it has {', '.join(known)}")


def _parse_blocks(space: Space, lines: Lines) -> Profile:
    names = tuple(AUTHORS_NAMES.values())
    meanings = {
        "none": frozenset[str](),
        **{name: frozenset({name}) for name in names},
        "+".join(names): frozenset(names),
    }
    for number, line in lines:
        if line not in meanings:
            raise ValueError(f"line {number}, {line[:100]!r}, is not one of {', '.join(meanings)}")
    dropped = [meanings[line] for _, line in lines]
    if len(dropped) != _num_blocks(space):
        raise ValueError(f"the profile has {len(dropped)} lines but the model has {_num_blocks(space)} blocks")
    profile = tuple(int(all(_authors_names(unit) <= dropped[block] for block in unit.blocks)) for unit in space.units)
    for unit, level in zip(space.units, profile, strict=True):
        if level >= len(unit.levels):
            raise ValueError(
                f"the profile drops {unit.name}, which is to be kept: change compress.keep_attention or "
                f"compress.keep_mlp"
            )
    if _dropped_by_block(space, profile) != dropped:
        raise ValueError(
            "the profile drops a part of a unit that can only be dropped as a whole: set compress.granularity=subblock"
        )
    return profile


def _authors_names(unit: Unit) -> frozenset[str]:
    """The sub-blocks of each of its blocks that a unit contains, as the authors name them."""
    return frozenset(AUTHORS_NAMES[subblock] for subblock in subblocks_of(unit))


def _dropped_by_block(space: Space, profile: Profile) -> list[frozenset[str]]:
    """The sub-blocks that are dropped in each block, as the authors name them."""
    dropped = [frozenset[str]() for _ in range(_num_blocks(space))]
    for unit, level in zip(space.units, profile, strict=True):
        for block in unit.blocks if level else ():
            dropped[block] |= _authors_names(unit)
    return dropped


def _num_blocks(space: Space) -> int:
    return 1 + max(block for unit in space.units for block in unit.blocks)
