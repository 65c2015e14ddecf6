"""Tells what a run, database, profile or checkpoint is, and whether it is whole. Loads no model and runs no code."""

from pathlib import Path

from evopress.inspection.checkpoints import INDEX, inspect_checkpoint, inspect_safetensors
from evopress.inspection.databases import inspect_database, is_database
from evopress.inspection.finding import Finding, Unknown
from evopress.inspection.profiles import inspect_profile, inspect_text_profile
from evopress.report.collect import find_runs, is_run, read_run
from evopress.report.style import megabytes

__all__ = ["Finding", "Unknown", "inspect", "inspect_run"]


def inspect(path: Path) -> list[Finding]:
    """What `path` is; several findings for a folder that holds several runs or databases.

    Raises Unknown for anything that this program does not write, FileNotFoundError where there is nothing.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if path.is_file():
        return [_inspect_file(path)]
    if is_database(path):
        return [inspect_database(path)]
    if is_run(path):
        return [inspect_run(path)]
    if (path / "config.json").is_file() or any(path.glob("*.safetensors")):
        return [inspect_checkpoint(path)]
    databases = sorted(manifest.parent for manifest in path.rglob("manifest.json") if is_database(manifest.parent))
    found = [*map(inspect_database, databases), *map(inspect_run, find_runs(path))]
    if not found and (path / "profile.json").is_file():
        return [inspect_profile(path / "profile.json")]
    if not found:
        raise Unknown(f"{path} holds no run, database or checkpoint: looked for .hydra, manifest.json and config.json")
    return found


def inspect_run(folder: Path) -> Finding:
    """Which stages are done, the main figures, and how to go on."""
    run = read_run(folder)
    finding = Finding("run", folder, damages=list(run.damages))
    finding.facts["what"] = ", ".join(filter(None, (run.title, f"search {run.search}" * bool(run.search))))
    finding.facts["stages"] = ", ".join(f"{stage} {'done' if done else 'to do'}" for stage, done in run.stages.items())
    if run.answers:
        finding.facts["search"] = f"{len(run.answers)} minibatches, {run.answers[-1].spent:,.0f} tokens"
    for name, found in run.candidates.items():
        scores = [f"KL {kl:.4g} on {data}" for data, kl in found.kl.items()]
        finding.facts[name] = ", ".join([f"{megabytes(found.size_bytes)} MB", *scores])
    if not all(run.stages.values()):
        finding.unfinished = run.resume_command
    return finding


def _inspect_file(path: Path) -> Finding:
    if path.name == "manifest.json" and is_database(path.parent):
        return inspect_database(path.parent)
    if path.name in ("results.json", "search.jsonl", "seconds.json"):
        return inspect_run(path.parent)
    if path.name in (INDEX, "config.json"):
        return inspect_checkpoint(path.parent)
    if path.suffix == ".safetensors":
        return inspect_safetensors(path)
    if path.suffix == ".json":
        finding = inspect_profile(path)
        if path.name != "profile.json" and finding.damages:
            raise Unknown(f"{path} is not a profile: it has no list `units` of units and levels")
        return finding
    if path.suffix == ".txt":
        return inspect_text_profile(path)
    raise Unknown(f"{path} is no kind of file that is known here: give a .json, .txt or .safetensors file, or a folder")
