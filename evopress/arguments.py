"""The command line: rewrites arguments before Hydra sees them, and makes folder names and hints from them."""

import atexit
import logging
import os
import re
import shlex
import shutil
import tempfile
from pathlib import Path

import yaml

PLAIN_VALUE = re.compile(r"[\w./:+@%*?|$-]*", re.ASCII)
"""Values that Hydra reads without quotes, apart from lists, dicts and sweeps."""

LONGEST_NAME = 200
"""The most characters that the name of a folder has. File systems allow 255 bytes."""


def expand_resume(arguments: list[str]) -> list[str]:
    """Replace `resume=DIR` by arguments that load the configuration saved in DIR; other arguments stay as they are.

    Raises SystemExit if DIR is not a run directory, or if its configuration could make Hydra run code.
    """
    resumed = [argument.removeprefix("resume=") for argument in arguments if argument.startswith("resume=")]
    if not resumed or resumed[-1] in ("", "null"):
        return arguments
    folder = Path(re.sub(r"""^(["'])(.*)\1$""", r"\2", resumed[-1])).expanduser()
    saved = folder.resolve() / ".hydra"
    if not (saved / "config.yaml").is_file():
        raise SystemExit(f"resume={folder} is not a run directory: it has no .hydra/config.yaml")
    _refuse_hydra_settings(saved)
    others = [argument for argument in arguments if not argument.startswith("resume=")]
    others = [f"++{other}" if other.startswith("finish=") else other for other in others]  # older runs lack this key
    path = _quoted(str(folder.resolve()))
    return ["--config-path", str(saved), *others, f"resume={path}", f"hydra.run.dir={path}", "hydra.output_subdir=null"]


def start_folder(run: Path) -> Path | None:
    """The folder in which a run was started; None if the run has no valid record of it."""
    try:
        saved = yaml.safe_load((run / ".hydra" / "hydra.yaml").read_text(encoding="utf-8"))
        folder = saved["hydra"]["runtime"]["cwd"]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, RecursionError):
        return None
    return Path(folder) if isinstance(folder, str) and Path(folder).is_absolute() else None


def folder_name(number: object, overrides: object) -> str:
    """A name for the folder of a job of a sweep: its number and overrides, without characters that need quotes."""
    words = re.sub(r"[^\w.]+", "-", str(overrides), flags=re.ASCII)
    return f"{number}_{words}"[:LONGEST_NAME].rstrip("-_.")


def with_home(path: object) -> str:
    """The path with the home directory in place of `~`."""
    return os.path.expanduser(str(path))


def suggest_quotes(arguments: list[str]) -> list[str]:
    """A hint for each argument whose value Hydra may not read without quotes. It shows the argument with quotes."""
    lines = []
    for argument in arguments:
        key, sign, value = argument.partition("=")
        if sign and not argument.startswith("-") and not PLAIN_VALUE.fullmatch(value) and value[:1] not in "[{\"'":
            lines.append(f"if {value} is a path or a text, write {shlex.quote(f'{key}={_quoted(value)}')}")
    return lines


def _quoted(value: str) -> str:
    """The value in quotes, so that Hydra reads it literally."""
    doubled = re.sub(r'(\\+)(?="|$)', r"\1\1", value)  # backslashes matter only before a quote
    escaped = doubled.replace('"', r"\"").replace("${", r"\${")
    return f'"{escaped}"'


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
        raise SystemExit(
            f"{saved} has {suspicious[0]}, which no run writes: it could run code, so the run is not resumed"
        )


def quiet_unless_first(arguments: list[str]) -> list[str]:
    """In every process but the first, log errors only, and add a temporary run directory to the arguments."""
    if os.environ.get("RANK", "0") == "0":
        return arguments
    logging.disable(logging.WARNING)
    folder = tempfile.mkdtemp(prefix="evopress-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return [*arguments, f"hydra.run.dir={folder}", f"hydra.sweep.dir={folder}", "hydra.output_subdir=null"]
