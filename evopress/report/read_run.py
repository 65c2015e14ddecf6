"""Reads a run directory. A damaged file becomes a warning and a missing one is left out; neither is an error."""

import logging
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from evopress.report.choices import choices_of
from evopress.report.in_engine import engine_of, measured_in_engine
from evopress.report.parsing import (
    PARSE_ERRORS,
    as_dict,
    checked_object,
    dict_or_empty,
    flattened,
    floats,
    load_object,
    load_yaml,
)
from evopress.report.record import CANDIDATES, Answers, CandidateScores, Checkpoint, Run
from evopress.report.run_warnings import logged_warnings, result_warnings, unfinished_warnings
from evopress.report.search_history import evaluated_batches
from evopress.runtime.json_files import parse_json

log = logging.getLogger(__name__)

T = TypeVar("T")


def read_run(folder: Path) -> Run:
    """Everything that the files of a run say about it. Reads only JSON, YAML and log files."""
    reader = _Reader(folder)
    files = _parsed_files(reader)
    run = _run_of(files, reader)
    notes = reader.read("results.json", lambda: tuple(map(str, files.results.get("notes", [])))) or ()
    logged = reader.read("run.log", lambda: tuple(logged_warnings(folder / "run.log"))) or ()
    warnings = (*unfinished_warnings(run), *reader.defects, *notes, *logged, *result_warnings(run))
    return replace(run, defects=tuple(reader.defects), warnings=tuple(dict.fromkeys(warnings)))


class _Reader:
    """Parses the files of a run, and collects defects of files that cannot be parsed."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.defects: list[str] = []

    def read(self, name: str, parse: Callable[[], T]) -> T | None:
        """What `parse` returns, or None if it fails. A failure is a defect of the file `name`, unless it is missing."""
        try:
            return parse()
        except FileNotFoundError:
            log.debug("%s has no %s", self.folder, name)
        except PARSE_ERRORS as error:
            reason = " ".join(str(error).split()) or "unreadable"
            self.defects.append(f"{name} is damaged, so this report omits it ({type(error).__name__}: {reason})")
        return None

    def search_log(self) -> tuple[dict, list[dict]]:
        """The settings in the header, and the lines after it. An incomplete last line (left by a kill) is ignored."""
        lines = (self.folder / "search.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
        parsed = []
        for number, line in enumerate(lines, start=1):
            try:
                parsed.append(checked_object(parse_json(line)))
            except (ValueError, TypeError):
                self.defects.append(f"search.jsonl is damaged from line {number} on; only the lines before it are used")
                break
        return (dict_or_empty(parsed[0].get("header")), parsed[1:]) if parsed else ({}, [])


@dataclass(frozen=True)
class _Files:
    """The parsed files. Missing and damaged files are empty."""

    config: dict
    results: dict
    profile: dict
    search_header: dict
    search_lines: list[dict]


def _parsed_files(reader: _Reader) -> _Files:
    folder = reader.folder
    config = reader.read("config.yaml", lambda: as_dict(load_yaml(folder / ".hydra/config.yaml"))) or {}
    results = reader.read("results.json", lambda: load_object(folder / "results.json")) or {}
    profile = reader.read("profile.json", lambda: load_object(folder / "profile.json")) or {}
    return _Files(config, results, profile, *(reader.read("search.jsonl", reader.search_log) or ({}, [])))


def _run_of(files: _Files, reader: _Reader) -> Run:
    folder, config, results, profile = reader.folder, files.config, files.results, files.profile
    settings = dict_or_empty(profile.get("settings")) or files.search_header
    budget: dict = {}
    for source in (config, settings, results):  # later sources are more complete
        budget |= dict_or_empty(source.get("budget"))
    fitness = str(dict_or_empty(settings.get("evaluator")).get("fitness", ""))
    search = dict_or_empty(settings.get("search"))
    compressor = str(dict_or_empty(config.get("compress")).get("_target_", "")).rpartition(".")[2].lower()
    exports = dict_or_empty(results.get("exports"))
    achieved = budget.get("achieved", profile.get("achieved"))
    return Run(
        folder=folder,
        model=str(results.get("model") or dict_or_empty(config.get("model")).get("name") or Run.model),
        method=str(results.get("compress") or compressor or Run.method),
        search=str(results.get("search") or search.get("name", "")).lower(),
        seed=str(settings.get("seed", config.get("seed", ""))),
        metric=str(budget.get("metric", "")),
        target=_target(budget.get("target", "")),
        achieved=reader.read("results.json", lambda: None if achieved is None else float(achieved)),
        seconds_per_step=reader.read("results.json", lambda: _seconds_per_step(results)),
        fitness=fitness,
        convention=str(results.get("perplexity_convention", "")),
        candidates=reader.read("results.json", lambda: dict(_candidates(results))) or {},
        choices=reader.read("profile.json", lambda: choices_of(profile)) or (),
        checkpoints=reader.read("results.json", lambda: tuple(_checkpoints(exports, folder))) or (),
        batches=reader.read("search.jsonl", lambda: tuple(evaluated_batches(files.search_lines, fitness))) or (),
        active_bytes=reader.read("results.json", lambda: floats(results.get("active_bytes", {}))) or {},
        memory=reader.read("results.json", lambda: dict(_memory(results))) or {},
        answers=reader.read("results.json", lambda: tuple(_answers(results))) or (),
        engine=reader.read("results.json", lambda: engine_of(results)) or "",
        in_engine=reader.read("results.json", lambda: dict(measured_in_engine(results))) or {},
        stopped=next((str(line.get("reason")) for line in files.search_lines if line.get("ask") == "stop"), ""),
        tuning=reader.read("results.json", lambda: dict(_tuning(results))) or {},
        tokens=reader.read("results.json", lambda: floats(results.get("tokens", {}))) or {},
        seconds=reader.read("seconds.json", lambda: floats(load_object(folder / "seconds.json"))) or {},
        peak_bytes=reader.read("results.json", lambda: floats(results.get("peak_memory_bytes", {}))) or {},
        settings=dict(flattened(config)),
        versions={str(key): str(value) for key, value in dict_or_empty(profile.get("versions")).items()},
        command=reader.read("overrides.yaml", lambda: _command(load_yaml(folder / ".hydra/overrides.yaml"))) or "",
    )


def _target(value: object) -> float | str:
    return float(value) if isinstance(value, int | float) else str(value)


def _candidates(results: Mapping) -> Iterator[tuple[str, CandidateScores]]:
    for name in CANDIDATES:
        if name in results:
            yield name, _scores(as_dict(results[name]))


def _scores(entry: Mapping) -> CandidateScores:
    by_position = entry.get("kl_by_position", {})
    return CandidateScores(
        size_bytes=int(entry["size_bytes"]),
        bits_per_weight=float(entry["bits_per_weight"]),
        bits_per_weight_with_scales=float(entry["bits_per_weight_with_scales"]),
        perplexity=floats(entry["perplexity"]),
        kl=floats(entry["kl"]),
        tasks={str(task): floats(scores) for task, scores in entry.get("tasks", {}).items()},
        kl_by_position={str(name): tuple(map(float, values)) for name, values in by_position.items()},
    )


def _memory(results: Mapping) -> Iterator[tuple[str, Mapping[str, float]]]:
    for name, parts in dict_or_empty(results.get("memory")).items():
        if name in CANDIDATES:
            yield name, floats(parts)


def _seconds_per_step(results: Mapping) -> float | None:
    also = dict_or_empty(dict_or_empty(results.get("budget")).get("also"))
    return float(also["achieved"]) if "achieved" in also else None


def _tuning(results: Mapping) -> Iterator[tuple[str, tuple[tuple[int, float], ...]]]:
    """The checks of every tuned candidate."""
    for name, entry in dict_or_empty(results.get("tuning")).items():
        if name in CANDIDATES and "checks" in entry:  # a model of which only the rounding was learnt has none
            yield name, tuple((int(step), float(kl)) for step, kl in entry["checks"])


def _answers(results: Mapping) -> Iterator[Answers]:
    for row in dict_or_empty(results.get("answers")).get("prompts", []):
        yield Answers(*(str(row[key]) for key in ("prompt", "dense", "compressed")))


def _checkpoints(exports: Mapping, run: Path) -> Iterator[Checkpoint]:
    """The exported checkpoints. Folders inside the run are relative to it."""
    for name, entry in exports.items():
        size, kl, same_top_token = entry["written_bytes"], entry["kl"], entry["same_top_token"]
        folder = Path(str(entry["folder"]))
        shown = folder.relative_to(run.resolve()) if folder.is_relative_to(run.resolve()) else folder
        yield Checkpoint(str(name), str(shown), int(size), float(kl), float(same_top_token))


def _command(overrides: object) -> str:
    if not isinstance(overrides, list):
        raise TypeError("expected a list of overrides")
    return " ".join(["python -m evopress.run", *(shlex.quote(str(override)) for override in overrides)])
