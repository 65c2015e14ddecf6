"""Starts the program that measures a checkpoint, in the Python environment of an engine."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from evopress.engines.known import Engine
from evopress.evaluation.eval_settings import Eval

PROGRAM = Path(__file__).with_name("measure_checkpoint.py")

LAST_LINES = 8
"""Lines at the end of a failed program's output that the error quotes."""


class EngineError(Exception):
    """An engine did not measure a checkpoint. The message has the end of its output."""


def python_of(settings: Eval) -> str:
    """The Python of the engine: `eval.engine_python`, or the one that runs evopress."""
    return settings.engine_python or sys.executable


def has_module(python: str, engine: Engine) -> bool:
    """Whether the Python environment has the module of the engine. Raises OSError if the file cannot be run."""
    find = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({engine.module!r}) is None)"
    return subprocess.run([python, "-c", find], capture_output=True).returncode == 0


def run_program(python: str, engine: str, request: Mapping[str, object]) -> dict[str, float | str | None]:
    """The measurements of a checkpoint, see `measure_checkpoint.py`. Raises EngineError if there are none."""
    command = [python, str(PROGRAM), engine]
    environment = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "PYTHONPATH")}
    done = subprocess.run(command, input=json.dumps(request), env=environment, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    if done.returncode == 0 and lines and lines[-1].startswith("RESULT "):
        return json.loads(lines[-1].removeprefix("RESULT "))
    output = "\n".join([*lines, *done.stderr.splitlines()][-LAST_LINES:])
    raise EngineError(f"the program ended with exit status {done.returncode}:\n{output}")
