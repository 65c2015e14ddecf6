"""The decorator of every class that a configuration group builds, and the type of paths in such classes."""

from collections.abc import Callable
from dataclasses import field
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
    decorate = dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", protected_namespaces=()))
    return cast(Callable[[type[T]], type[T]], decorate)(cls)
