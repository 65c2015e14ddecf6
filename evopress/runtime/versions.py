"""Versions of Python, evopress and the libraries that it depends on, and hashes of code that has no version."""

import inspect
import platform
import re
import tomllib
from contextlib import suppress
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path


def installed_versions() -> dict[str, str]:
    """The versions of Python, evopress and all installed dependencies, by name, without development tools."""
    names = [re.split(r"[^\w.-]", requirement)[0] for requirement in _requirements()]
    return {"python": platform.python_version(), **library_versions("evopress", *names)}


def library_versions(*names: str) -> dict[str, str]:
    """The versions of those libraries that are installed, by name. evopress has one wherever it runs."""
    versions = {}
    for name in names:
        with suppress(PackageNotFoundError):
            versions[name] = _evopress_version() if name == "evopress" else version(name)
    return versions


def _evopress_version() -> str:
    try:
        return version("evopress")
    except PackageNotFoundError:
        return str(_project()["version"])


def _requirements() -> list[str]:
    """The requirements of evopress and of its extras, without those for development."""
    try:
        return [line for line in requires("evopress") or () if '"dev"' not in line]
    except PackageNotFoundError:
        extras = _project()["optional-dependencies"]
        return [*_project()["dependencies"], *(line for name in extras if name != "dev" for line in extras[name])]


@cache
def _project() -> dict:
    """The project table of `pyproject.toml`, for a checkout that runs without being installed."""
    return tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


def code_hash(cls: type) -> str | None:
    """SHA-256 of the file that defines a class outside evopress; None for a class of evopress, or without a file."""
    if cls.__module__.split(".")[0] == "evopress":
        return None
    try:
        return sha256(Path(inspect.getfile(cls)).read_bytes()).hexdigest()
    except (OSError, TypeError):  # a class that a notebook defines
        return None
