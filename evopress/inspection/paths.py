"""Chooses the inspection that fits a path."""

from pathlib import Path

from evopress.inspection.checkpoints import INDEX, inspect_checkpoint, inspect_safetensors
from evopress.inspection.databases import inspect_database, is_database
from evopress.inspection.finding import Finding, UnknownFileError
from evopress.inspection.profiles import inspect_profile, inspect_text_profile
from evopress.inspection.runs import inspect_run
from evopress.report.run_folders import RUN_FILES, find_runs, is_run


def inspect_path(path: Path) -> list[Finding]:
    """The finding for `path`, or several for a folder that holds several runs or databases.

    Raises UnknownFileError for anything that evopress does not write, FileNotFoundError if `path` does not exist.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    return [_inspect_file(path)] if path.is_file() else _inspect_folder(path)


def _inspect_folder(folder: Path) -> list[Finding]:
    if is_database(folder):
        return [inspect_database(folder)]
    if is_run(folder):
        return [inspect_run(folder)]
    if (folder / "config.json").is_file() or any(folder.glob("*.safetensors")):
        return [inspect_checkpoint(folder)]
    databases = sorted(manifest.parent for manifest in folder.rglob("manifest.json") if is_database(manifest.parent))
    findings = [*map(inspect_database, databases), *map(inspect_run, find_runs(folder))]
    if not findings and (folder / "profile.json").is_file():
        return [inspect_profile(folder / "profile.json")]
    if not findings:
        raise UnknownFileError(
            f"{folder} holds no run, database or checkpoint: looked for .hydra, manifest.json and config.json"
        )
    return findings


def _inspect_file(path: Path) -> Finding:
    if path.name == "manifest.json" and is_database(path.parent):
        return inspect_database(path.parent)
    if path.name in RUN_FILES:
        return inspect_run(path.parent)
    if path.name in (INDEX, "config.json"):
        return inspect_checkpoint(path.parent)
    if path.suffix == ".safetensors":
        return inspect_safetensors(path)
    if path.suffix == ".json":
        return _inspect_json(path)
    if path.suffix == ".txt":
        return inspect_text_profile(path)
    raise UnknownFileError(f"{path} is of an unknown kind: give a .json, .txt or .safetensors file, or a folder")


def _inspect_json(path: Path) -> Finding:
    finding = inspect_profile(path)
    if path.name != "profile.json" and not finding.facts:
        raise UnknownFileError(f"{path} is not an intact profile: {finding.defects[0]}")
    return finding
