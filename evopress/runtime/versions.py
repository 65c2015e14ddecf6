"""Versions of Python, evopress and the libraries that it depends on, and hashes of code that has no version."""

import inspect
import platform
import re
from contextlib import suppress
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path


def installed_versions() -> dict[str, str]:
    """The versions of Python, evopress and all installed dependencies, by name, without development tools."""
    requirements = [line for line in requires("evopress") or () if '"dev"' not in line]
    versions = {"python": platform.python_version(), "evopress": version("evopress")}
    for requirement in requirements:
        name = re.split(r"[^\w.-]", requirement)[0]
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def library_versions(*names: str) -> dict[str, str]:
    """The versions of those libraries that are installed, by name."""
    versions = {}
    for name in names:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def code_hash(cls: type) -> str | None:
    """SHA-256 of the file that defines a class outside evopress; None for a class of evopress, or without a file."""
    if cls.__module__.split(".")[0] == "evopress":
        return None
    try:
        return sha256(Path(inspect.getfile(cls)).read_bytes()).hexdigest()
    except (OSError, TypeError):  # a class that a notebook defines
        return None
