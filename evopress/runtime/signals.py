"""Ctrl-C and SIGTERM end a run at a point from which it can go on.

A signal raises KeyboardInterrupt where the program happens to be. That alone is not enough: inside a library's C code
it may come out as that library's own error, and an import that tolerates every error may swallow it. So the signal is
noted as well, and long work calls `raise_if_interrupted` between its steps.
"""

import signal

_received: list[int] = []


def listen() -> None:
    """From now on a signal is noted and raises KeyboardInterrupt."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def was_interrupted() -> bool:
    """Whether there was a signal."""
    return bool(_received)


def raise_if_interrupted() -> None:
    """Raises KeyboardInterrupt if there was a signal."""
    if _received:
        raise KeyboardInterrupt


def _interrupt(number: int, frame: object) -> None:
    _received.append(number)
    raise KeyboardInterrupt
