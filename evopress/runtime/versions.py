"""Versions of Python, of evopress and of the libraries it depends on."""

import platform
import re
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version


def installed_versions() -> dict[str, str]:
    """Version by name, for every dependency that is installed; development tools are left out."""
    requirements = [line for line in requires("evopress") or () if '"dev"' not in line]
    versions = {"python": platform.python_version(), "evopress": version("evopress")}
    for requirement in requirements:
        name = re.split(r"[^\w.-]", requirement)[0]
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions
