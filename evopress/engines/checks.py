"""Checks of `eval.engine` at start-up, and the format that the engine loads."""

from evopress.engines.known import ENGINES
from evopress.engines.program import has_module, python_of
from evopress.evaluation.eval_settings import Eval
from evopress.export import Export, Format
from evopress.export.registry import chosen_formats, registered_formats


def check_engine(settings: Eval, export: Export) -> None:
    """Check that the engine is installed and that one of the checkpoints will be of a format that it loads.

    Starts the engine's Python once, which takes less than a second.

    Raises:
        ValueError: Something is missing.
    """
    if settings.engine is None:
        return
    loaded_format(settings.engine, export)
    engine, python = ENGINES[settings.engine], python_of(settings)
    try:
        is_installed = has_module(python, engine)
    except OSError as error:
        raise ValueError(
            f"eval.engine_python is {python}, which cannot be run ({error.strerror}): set it to the Python of an "
            f"environment that has {engine.title}, such as .engines/{settings.engine}/bin/python"
        ) from error
    if not is_installed:
        raise ValueError(
            f"eval.engine={settings.engine} needs the Python module {engine.module}, which {python} does not have: "
            f"set eval.engine_python to the Python of an environment that has it, or run `{python} -m pip install "
            f"{engine.packages}`"
        )


def loaded_format(engine: str, export: Export) -> Format:
    """The first of the chosen formats that the engine loads. Formats that pack levels come before others.

    Raises ValueError if there is none.
    """
    chosen = chosen_formats(export)
    fitting = [one for one in chosen if engine in one.engines]
    if fitting:
        return next((one for one in fitting if one.packs_levels), fitting[0])
    names = [cls.name for cls in registered_formats() if engine in cls.engines]
    if any(one.name in names for one in chosen):  # compressed_tensors for another engine
        raise ValueError(
            f"eval.engine={engine} cannot load compressed_tensors that is written for another engine: set "
            f"export.engine={engine}"
        )
    raise ValueError(
        f"eval.engine={engine} runs an exported checkpoint, but none of export.formats={export.formats} is one that "
        f"{ENGINES[engine].title} loads: add one of {', '.join(names)}"
    )
