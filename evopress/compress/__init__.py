"""Compressors; called as a function, the whole job: `evopress.compress(model, …)` is `evopress.python.compress`."""

import sys
from types import ModuleType
from typing import Any


class _Job(ModuleType):
    """This package keeps its name, and can be called like the function that it is named after."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from evopress.python import compress

        return compress(*args, **kwargs)


sys.modules[__name__].__class__ = _Job
