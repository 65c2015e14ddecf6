"""Ctrl-C and SIGTERM stop a run so that it can be resumed.

A signal raises KeyboardInterrupt wherever the program is. That alone is not enough: a library may turn the exception
into another one, and an import that ignores all errors may swallow it. So the signal is also recorded, and long loops
call `raise_if_interrupted` between their steps.
"""

import signal

_received: list[int] = []


def listen() -> None:
    """From now on, record every signal and raise KeyboardInterrupt."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def was_interrupted() -> bool:
    """Whether a signal arrived."""
    return bool(_received)


def raise_if_interrupted() -> None:
    """Raise KeyboardInterrupt if a signal arrived."""
    if _received:
        raise KeyboardInterrupt


def _interrupt(number: int, frame: object) -> None:
    _received.append(number)
    raise KeyboardInterrupt
