"""The decorator of every class that a configuration group builds, and the type of paths in such classes."""

from collections.abc import Callable
from dataclasses import field, fields
from os.path import expanduser
from typing import Annotated, TypeVar, cast, dataclass_transform

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

T = TypeVar("T")

UserPath = Annotated[str, AfterValidator(expanduser)]
"""A path or another name in a configuration. A `~` at the start becomes the home directory."""


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field, Field))
def config_class(cls: type[T]) -> type[T]:
    """A frozen, keyword-only pydantic dataclass that refuses unknown keys and wrong types.

    An example::

        @config_class
        class Climb(Search):
            steps: int = Field(gt=0)
    """
    settings = ConfigDict(extra="forbid", protected_namespaces=(), validate_by_name=True, validate_by_alias=True)
    decorate = dataclass(frozen=True, kw_only=True, config=settings)
    return cast(Callable[[type[T]], type[T]], decorate)(cls)


def keys_of(cls: type) -> list[str]:
    """The configuration keys of a dataclass: the names of its fields, or their aliases if they have any."""
    described = getattr(cls, "__pydantic_fields__", {})
    aliases = {name: getattr(description, "alias", None) for name, description in described.items()}
    return [aliases.get(part.name) or part.name for part in fields(cls)]  # type: ignore[arg-type]
