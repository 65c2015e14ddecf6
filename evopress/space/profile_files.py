"""Profiles as JSON, and in the text format of the paper's authors."""

import json
from collections.abc import Mapping

from evopress.runtime.json_files import dict_of_unique, parse_json
from evopress.space.units import Profile, Space, Unit

PARTS = ("attn", "mlp")
"""What the authors' files call the sub-blocks of a block."""


def to_text(space: Space, profile: Profile) -> str:
    """The form of the paper's authors: `layer name: level` lines, or a line per block with what is dropped of it.

    A parent has a line of its own, `name: 1` where it is dropped, and then none for what is inside it.
    """
    if space.is_depth_pruning:
        dropped = _dropped_parts(space, profile)
        return "".join(f"{'+'.join(part for part in PARTS if part in parts) or 'none'}\n" for parts in dropped)
    return "".join(
        f"{name}: {space.level(index, profile).value:g}\n"
        for index, unit in enumerate(space.units)
        if not space.is_inside_dropped(index, profile)
        for name in _lines_of(unit)
    )


def to_json(space: Space, profile: Profile, **facts: object) -> str:
    """The profile with its units, levels and costs; `facts` (budget, seed, fingerprints, …) go on top."""
    units = [
        {"unit": unit.name, "level": level, "label": chosen.label, "cost": chosen.cost, "size_bytes": chosen.size_bytes}
        | ({"inside": unit.parent} if unit.parent else {})
        for index, (unit, level) in enumerate(zip(space.units, profile, strict=True))
        for chosen in [space.level(index, profile)]
    ]
    return json.dumps({**facts, "cost": space.cost(profile), "units": units}, indent=1) + "\n"


def from_json(space: Space, text: str) -> Profile:
    """Read what `to_json` wrote. Raises ValueError where it does not fit `space`."""
    try:
        entries = [(entry["unit"], entry["level"]) for entry in parse_json(text)["units"]]
        named = dict_of_unique(entries)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"this is not a profile: expected an object with a list `units` of unit and level ({error})"
        ) from error
    return _by_name(space, named)


def from_text(space: Space, text: str, zero: Profile | None = None) -> Profile:
    """Read what `to_text` wrote, or a file of the paper's authors.

    Their sparsities are whole steps from the target (-1 is a level denser); `zero` is the profile that these count
    from. A parent without a line is kept. Raises ValueError for a line, layer or level that is unknown, missing or
    given twice.
    """
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    return _depth_from(space, lines) if space.is_depth_pruning else _layers_from(space, lines, zero)


def _layers_from(space: Space, lines: list[tuple[int, str]], zero: Profile | None) -> Profile:
    values: dict[str, float] = {}
    for number, line in lines:
        name, _, value = line.rpartition(":")
        try:
            if name.strip() in values:
                raise ValueError("given twice")
            values[name.strip()] = float(value)
        except ValueError as error:
            raise ValueError(f"line {number}, {line[:100]!r}, is not `layer name: level` ({error})") from error
    unknown = values.keys() - {name for unit in space.units for name in _lines_of(unit)}
    if unknown:
        raise ValueError(f"the model has no layer {min(unknown)!r}")
    dropped = {unit.name for unit in space.units if not unit.layers and values.get(unit.name)}
    silent = [not unit.layers or unit.parent in dropped for unit in space.units]
    given = [
        None if may_lack and values.keys().isdisjoint(_lines_of(unit)) else _value_of(unit, values)
        for unit, may_lack in zip(space.units, silent, strict=True)
    ]
    if zero is not None and all(value is None or value.is_integer() for value in given):
        profile = tuple(level + int(step or 0) for level, step in zip(zero, given, strict=True))
    else:
        profile = tuple(0 if v is None else _level_of(unit, v) for unit, v in zip(space.units, given, strict=True))
    space.check(profile)
    return space.normalized(profile)


def _lines_of(unit: Unit) -> tuple[str, ...]:
    return unit.layers or (unit.name,)


def _value_of(unit: Unit, values: Mapping[str, float]) -> float:
    names = _lines_of(unit)
    found = {values[name] for name in names if name in values}
    missing = [name for name in names if name not in values]
    if missing or len(found) != 1:
        raise ValueError(f"{unit.name} needs exactly one level, the profile gives {sorted(found) or 'none'}")
    return found.pop()


def _level_of(unit: Unit, value: float) -> int:
    for index, level in enumerate(unit.levels):
        if f"{level.value:g}" == f"{value:g}":
            return index
    raise ValueError(f"{unit.name} has no level {value:g}; it has {', '.join(f'{x.value:g}' for x in unit.levels)}")


def _parts_of(unit: Unit) -> frozenset[str]:
    return frozenset(PARTS) if unit.kind == "block" else frozenset({"attn" if unit.kind == "attention" else unit.kind})


def _dropped_parts(space: Space, profile: Profile) -> list[set[str]]:
    """Which of `PARTS` are dropped in each block."""
    dropped: list[set[str]] = [set() for _ in range(_num_blocks(space))]
    for unit, level in zip(space.units, profile, strict=True):
        for block in unit.blocks if level else ():
            dropped[block] |= _parts_of(unit)
    return dropped


def _num_blocks(space: Space) -> int:
    return 1 + max(block for unit in space.units for block in unit.blocks)


def _depth_from(space: Space, lines: list[tuple[int, str]]) -> Profile:
    words = {"none": set(), **{part: {part} for part in PARTS}, "+".join(PARTS): set(PARTS)}
    for number, line in lines:
        if line not in words:
            raise ValueError(f"line {number}, {line[:100]!r}, is not one of {', '.join(words)}")
    dropped = [words[line] for _, line in lines]
    if len(dropped) != _num_blocks(space):
        raise ValueError(f"the profile has {len(dropped)} lines but the model has {_num_blocks(space)} blocks")
    profile = tuple(int(all(_parts_of(unit) <= dropped[block] for block in unit.blocks)) for unit in space.units)
    for unit, level in zip(space.units, profile, strict=True):
        if level >= len(unit.levels):
            raise ValueError(
                f"{unit.name} is dropped but must stay: change compress.keep_attention or compress.keep_mlp"
            )
    if _dropped_parts(space, profile) != dropped:
        raise ValueError("the profile drops parts that stand or fall together here: set compress.granularity=subblock")
    return profile


def _by_name(space: Space, named: Mapping[str, object]) -> Profile:
    missing = [unit.name for unit in space.units if unit.name not in named]
    unknown = named.keys() - {unit.name for unit in space.units}
    if missing or unknown:
        raise ValueError(
            f"the profile is for another model: missing {missing[:3]}, unknown {sorted(map(str, unknown))[:3]}"
        )
    profile = []
    for unit in space.units:
        level = named[unit.name]
        if type(level) is not int:
            raise ValueError(f"the level of {unit.name} must be an integer, not {str(level)[:50]!r}")
        profile.append(level)
    space.check(tuple(profile))
    return space.normalized(tuple(profile))
