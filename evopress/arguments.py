"""Command-line arguments that are rewritten before Hydra sees them: resume=DIR, and those of further processes."""

import atexit
import logging
import os
import re
import shutil
import tempfile
from pathlib import Path

import yaml


def expand_resume(arguments: list[str]) -> list[str]:
    """Replace `resume=DIR` by arguments that load the configuration saved in DIR; other arguments stay as they are.

    Raises SystemExit if DIR is not a run directory, or if its configuration could make Hydra run code.
    """
    resumed = [Path(argument.removeprefix("resume=")) for argument in arguments if argument.startswith("resume=")]
    if not resumed or str(resumed[-1]) in ("", "null"):
        return arguments
    saved = resumed[-1].resolve() / ".hydra"
    if not (saved / "config.yaml").is_file():
        raise SystemExit(f"resume={resumed[-1]} is not a run directory: it has no .hydra/config.yaml")
    _refuse_hydra_settings(saved)
    same_folder = [f"hydra.run.dir={resumed[-1]}", "hydra.output_subdir=null"]
    return ["--config-path", str(saved), *arguments, *same_folder]


def _refuse_hydra_settings(saved: Path) -> None:
    """Raises SystemExit if the folder contains settings of Hydra itself. Hydra would call the functions they name."""
    content = (saved / "config.yaml").read_text(encoding="utf-8", errors="replace")
    try:
        keys = yaml.safe_load(content).keys()
    except (yaml.YAMLError, AttributeError, RecursionError) as error:
        raise SystemExit(f"{saved}/config.yaml is damaged ({error}): start a new run") from error
    suspicious = [f"the key {key}" for key in sorted(keys & {"hydra", "defaults"})]
    suspicious += ["a @package line"] if re.search(r"^\s*#.*@package", content, re.MULTILINE) else []
    suspicious += [f"the folder {path.name}" for path in saved.iterdir() if path.is_dir()]
    if suspicious:
        raise SystemExit(f"{saved} has {suspicious[0]}, which no run writes: it could run code, so it is not resumed")


def quiet_unless_first(arguments: list[str]) -> list[str]:
    """In every process but the first: log errors only, and return arguments with a temporary run directory."""
    if os.environ.get("RANK", "0") == "0":
        return arguments
    logging.disable(logging.WARNING)
    folder = tempfile.mkdtemp(prefix="evopress-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return [*arguments, f"hydra.run.dir={folder}", f"hydra.sweep.dir={folder}", "hydra.output_subdir=null"]
