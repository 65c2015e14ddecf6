"""What a run directory holds, as plain values. A file that is missing or damaged becomes a warning, never an error."""

import json
import logging
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import TypeVar

import yaml

from evopress.report.record import CANDIDATES, Checkpoint, Choice, Fitnesses, Measured, Run
from evopress.runtime.checksums import verify_checksum
from evopress.runtime.json_files import parse_json

log = logging.getLogger(__name__)

T = TypeVar("T")

RUN_FILES = (".hydra/config.yaml", "results.json", "search.jsonl", "seconds.json")
"""A folder with one of these is a run directory. An exported checkpoint has a profile.json too."""

MAX_GAP = 0.25
"""A KL on test text that is more than this share above the fitness on search tokens is worth a warning."""

MAX_LEVEL = 61
"""The search log has no character for more."""

_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, yaml.YAMLError)


def is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in RUN_FILES)


def find_runs(folder: Path) -> list[Path]:
    """`folder` itself if it is a run directory, else those below it, in the order of their names."""
    if is_run(folder):
        return [folder]
    marked = {path.parents[len(Path(name).parts) - 1] for name in RUN_FILES for path in folder.rglob(name)}
    return sorted(run for run in marked if not marked & set(run.parents))


def read_run(folder: Path) -> Run:
    """Everything `folder` holds of a run. Reads JSON and YAML only."""
    reader = _Reader(folder)
    config = reader.read("config.yaml", lambda: _mapping(_yaml(folder / ".hydra/config.yaml"))) or {}
    results = reader.read("results.json", lambda: _checked(_json(folder / "results.json"))) or {}
    profile = reader.read("profile.json", lambda: _checked(_json(folder / "profile.json"))) or {}
    header, lines = reader.read("search.jsonl", lambda: reader.search_log(folder / "search.jsonl")) or ({}, [])
    settings = _dict(profile.get("settings")) or header
    budget = {**_dict(config.get("budget")), **_dict(settings.get("budget")), **_dict(results.get("budget"))}
    fitness = str(_dict(settings.get("evaluator")).get("fitness", ""))
    searched = _dict(settings.get("search"))
    target = str(_dict(config.get("compress")).get("_target_", "")).rpartition(".")[2].lower()
    run = Run(
        folder=folder,
        model=str(results.get("model") or _dict(config.get("model")).get("name") or Run.model),
        method=str(results.get("compress") or target or Run.method),
        search=str(results.get("search") or searched.get("name", "")).lower(),
        seed=str(settings.get("seed", config.get("seed", ""))),
        metric=str(budget.get("metric", "")),
        target=_target(budget.get("target", "")),
        achieved=reader.read("results.json", lambda: _optional_float(budget.get("achieved", profile.get("achieved")))),
        fitness=fitness,
        convention=str(results.get("perplexity_convention", "")),
        candidates=reader.read("results.json", lambda: dict(_candidates(results))) or {},
        choices=reader.read("profile.json", lambda: choices_of(profile)) or (),
        checkpoints=reader.read("results.json", lambda: tuple(_checkpoints(_dict(results.get("exports")), folder)))
        or (),
        answers=reader.read("search.jsonl", lambda: tuple(_fitnesses(lines, fitness))) or (),
        tokens=reader.read("results.json", lambda: _floats(results.get("tokens", {}))) or {},
        seconds=reader.read("seconds.json", lambda: _floats(_checked(_json(folder / "seconds.json")))) or {},
        peak_bytes=reader.read("results.json", lambda: _floats(results.get("peak_memory_bytes", {}))) or {},
        settings=dict(flattened(config)),
        versions={str(key): str(value) for key, value in _dict(profile.get("versions")).items()},
        command=reader.read("overrides.yaml", lambda: _command(_yaml(folder / ".hydra/overrides.yaml"))) or "",
    )
    notes = reader.read("results.json", lambda: tuple(map(str, results.get("notes", [])))) or ()
    logged = reader.read("run.log", lambda: tuple(_logged_warnings(folder / "run.log"))) or ()
    warnings = (*_unfinished(run), *reader.damages, *notes, *logged, *_doubts(run))
    return replace(run, damages=tuple(reader.damages), warnings=tuple(dict.fromkeys(warnings)))


def choices_of(profile: Mapping) -> tuple[Choice, ...]:
    """The units of a parsed `profile.json`. Raises ValueError, TypeError or KeyError for anything else.

    Of a sub-block with units inside, those tell whether it is dropped.
    """
    entries = profile.get("units", [])
    parents = {entry.get("inside") for entry in entries}
    choices = tuple(_choice(entry) for entry in entries if entry["unit"] not in parents)
    lowest = min((choice.kept for choice in choices), default=0.0)
    if lowest >= 0:
        return choices
    return tuple(replace(choice, kept=lowest - 1) if choice.label == "dropped" else choice for choice in choices)


def flattened(tree: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and the values as JSON would show them; lists of plain values stay together."""
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from flattened(value, f"{prefix}.{key}" if prefix else str(key))
    elif prefix:
        yield prefix, tree if isinstance(tree, str) else json.dumps(tree, default=str, ensure_ascii=False)


class _Reader:
    """Reads parts of a run; what cannot be read is None, and goes on the list of damages."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.damages: list[str] = []

    def read(self, name: str, action: Callable[[], T]) -> T | None:
        try:
            return action()
        except FileNotFoundError:
            log.debug("%s has no %s", self.folder, name)
        except _DAMAGED as error:
            reason = " ".join(str(error).split()) or "unreadable"
            self.damages.append(f"{name} is damaged; this report goes without it ({type(error).__name__}: {reason})")
        return None

    def search_log(self, path: Path) -> tuple[dict, list[dict]]:
        """The header's settings and the answers. A last line without its end is what a kill leaves, and left out."""
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        parsed = []
        for number, line in enumerate(lines, start=1):
            try:
                parsed.append(_checked(parse_json(line)))
            except (ValueError, TypeError):
                self.damages.append(f"search.jsonl is damaged from line {number} on; only what is before it is shown")
                break
        return (_dict(parsed[0].get("header")), parsed[1:]) if parsed else ({}, [])


def _candidates(results: Mapping) -> Iterator[tuple[str, Measured]]:
    for name in CANDIDATES:
        if name in results:
            found = _mapping(results[name])
            yield (
                name,
                Measured(
                    size_bytes=int(found["size_bytes"]),
                    bits_per_weight=float(found["bits_per_weight"]),
                    bits_per_weight_with_scales=float(found["bits_per_weight_with_scales"]),
                    perplexity=_floats(found["perplexity"]),
                    kl=_floats(found["kl"]),
                    tasks={str(task): _floats(scores) for task, scores in found.get("tasks", {}).items()},
                    kl_by_position={
                        str(key): tuple(map(float, values)) for key, values in found.get("kl_by_position", {}).items()
                    },
                ),
            )


def _checkpoints(exports: Mapping, run: Path) -> Iterator[Checkpoint]:
    for name, found in exports.items():
        size, kl, same = found["written_bytes"], found["kl"], found["same_top_token"]
        place = Path(str(found["folder"]))
        shown = place.relative_to(run.resolve()) if place.is_relative_to(run.resolve()) else place
        yield Checkpoint(str(name), str(shown), int(size), float(kl), float(same))


def _choice(entry: Mapping) -> Choice:
    name, label, level = str(entry["unit"]), str(entry["label"]), int(entry["level"])
    if not 0 <= level <= MAX_LEVEL:
        raise ValueError(f"{name} has level {level}")
    matches = [re.fullmatch(r"(?:.*?\.)??(\d+)\.(.+)", part) for part in name.split("+")]
    found = [(int(match[1]), match[2]) for match in matches if match]
    blocks = tuple(dict.fromkeys(block for block, _ in found))
    kind = "+".join(dict.fromkeys(_short(kind) for _, kind in found)) or name
    return Choice(name, blocks, kind, level, label, _kept(label, level), int(entry["size_bytes"]))


def _short(kind: str) -> str:
    """self_attn.q_proj → q"""
    return kind.rpartition(".")[2].removesuffix("_proj")


def _kept(label: str, level: int) -> float:
    """What a level keeps, as far as its label says: bits, or the share of weights; else its place from the end."""
    if label in ("kept", "dropped"):
        return float(label == "kept")
    if match := re.fullmatch(r"(\d+(?:\.\d+)?) ?(bits?)?", label):
        return float(match[1]) if match[2] else 1 - float(match[1])
    return -float(level)


def _fitnesses(lines: list[dict], fitness: str) -> Iterator[Fitnesses]:
    """The batches among the answers, where they were measured by the run's own fitness."""
    spent = 0.0
    for line in lines:
        spent += float(line["token_equivalents"])
        if line["ask"] == "batch" and line.get("fitness") in (None, fitness):
            values = tuple(map(float, line["answer"]))
            profiles = tuple(map(str, line["profiles"]))
            if len(values) != len(profiles):
                raise ValueError(f"{len(profiles)} profiles but {len(values)} answers")
            yield Fitnesses(str(line.get("label", "")), int(line["tokens"]), spent, values, profiles)


def _logged_warnings(path: Path) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if match := re.match(r"\[[^]]*\]\[[^]]*\]\[(WARNING|ERROR)\] - (.*)", line):
            yield match[2]


def _unfinished(run: Run) -> Iterator[str]:
    missing = [stage for stage, done in run.stages.items() if not done]
    if missing:
        yield f"This run has not finished: {', '.join(missing)} to do. Go on with: {run.resume_command}"


def _doubts(run: Run) -> Iterator[str]:
    """Where the figures themselves call for care."""
    uniform, searched = run.candidates.get("uniform"), run.candidates.get("searched")
    if uniform and searched:
        for name in searched.kl:
            if searched.kl[name] > uniform.kl.get(name, float("inf")):
                yield (
                    f"On {name} the searched profile is worse than the uniform one (KL {searched.kl[name]:.4g} against "
                    f"{uniform.kl[name]:.4g}): give the search more generations, or more tokens in its last stage."
                )
    if (gap := overfit_gap(run)) is not None and gap[2] > MAX_GAP:
        yield (
            f"KL on test text is {gap[2]:.0%} above that on search tokens ({gap[1]:.4g} against {gap[0]:.4g}): the "
            f"search may have over-fitted, or the test text is harder. More data.search_tokens, or more tokens in the "
            f"last of search.stages, would help."
        )
    unusable = sum(not isfinite(value) for answer in run.answers for value in answer.values)
    if unusable:
        yield f"{unusable} of the profiles that the search tried had no finite fitness."


def overfit_gap(run: Run) -> tuple[float, float, float] | None:
    """KL of the searched profile on search tokens, on the first test set, and the second relative to the first, less 1.

    None unless the search minimised KL and both are known.
    """
    searched = run.candidates.get("searched")
    found = run.search_fitness
    if run.fitness != "kl" or not searched or not searched.kl or not found or not isfinite(found):
        return None
    test = next(iter(searched.kl.values()))
    return found, test, test / found - 1


def _command(overrides: object) -> str:
    if not isinstance(overrides, list):
        raise TypeError("expected a list of overrides")
    return " ".join(["python -m evopress.run", *(shlex.quote(str(override)) for override in overrides)])


def _json(path: Path) -> object:
    return parse_json(path.read_text(encoding="utf-8"))


def _yaml(path: Path) -> object:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _mapping(value: object) -> dict:
    if not isinstance(value, dict):
        raise TypeError(f"expected an object, not {type(value).__name__}")
    return value


def _checked(value: object) -> dict:
    """An object that fits its checksum, where it has one."""
    mapping = _mapping(value)
    return verify_checksum(mapping) if "sha256" in mapping else mapping


def _dict(value: object) -> dict:
    return value if isinstance(value, dict) else {}


def _floats(value: object) -> dict[str, float]:
    return {str(key): float(number) for key, number in _mapping(value).items()}


def _optional_float(value: object) -> float | None:
    return None if value is None else float(value)  # type: ignore[arg-type]


def _target(value: object) -> float | str:
    return float(value) if isinstance(value, int | float) else str(value)
