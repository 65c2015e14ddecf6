"""The registry of checkpoint formats."""

import pkgutil

from evopress.export.base import Format, UnsupportedExportError
from evopress.export.settings import Export

_FORMATS: dict[str, type[Format]] = {}


def register_format(cls: type[Format]) -> type[Format]:
    """Class decorator that makes a format available under its `name`.

    An example::

        @register_format
        class Fp8Safetensors(Format):
            name = "fp8"

    Raises:
        ValueError: Another class has this name.
    """
    registered = _FORMATS.get(cls.name)
    if registered is not None and _import_path(registered) != _import_path(cls):  # a reloaded module is the same
        raise ValueError(f"{_import_path(registered)} already has the format name {cls.name!r}: choose another name")
    _FORMATS[cls.name] = cls
    return cls


def _import_path(cls: type[Format]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def registered_formats() -> tuple[type[Format], ...]:
    """All formats in the order in which they were registered."""
    return tuple(_FORMATS.values())


def chosen_formats(settings: Export) -> list[Format]:
    """The formats of `settings.formats`, each once and with its settings.

    Raises:
        UnsupportedExportError: A name is unknown.
    """
    classes = dict.fromkeys(_format_class(name) for name in settings.formats)
    return [cls.from_settings(settings) for cls in classes]


def _format_class(name: str) -> type[Format]:
    """The format with this name or import path."""
    if name in _FORMATS:
        return _FORMATS[name]
    if "." not in name:
        raise UnsupportedExportError(
            f"export.formats contains {name!r}, which is not a format: use some of {', '.join(_FORMATS)}, or the "
            "import path of your own class"
        )
    try:
        cls = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UnsupportedExportError(f"export.formats contains {name!r}, which cannot be imported: {error}") from error
    if not isinstance(cls, type) or not issubclass(cls, Format):
        raise UnsupportedExportError(f"export.formats contains {name!r}, which is not a subclass of Format")
    return cls
