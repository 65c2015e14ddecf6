"""Progress of long stages: a bar in a terminal, now and then a line in a log."""

import logging
import sys
from collections.abc import Iterable
from io import StringIO

from tqdm import tqdm

from evopress.runtime import distributed

log = logging.getLogger(__name__)

SECONDS_PER_LINE = 30


class _Lines(tqdm):
    """tqdm that logs a line instead of drawing a bar."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if self.n:
            log.info("%s", msg or str(self))


def progress(items: Iterable | None = None, *, desc: str, unit: str, total: int | None = None) -> tqdm:
    """A tqdm over `items`, or to be updated by hand when there are none, with rate and remaining time."""
    if sys.stderr.isatty() or not distributed.is_first():
        return tqdm(items, desc=desc, unit=unit, total=total, disable=not distributed.is_first())
    return _Lines(
        items,
        desc=desc,
        unit=unit,
        total=total,
        file=StringIO(),
        mininterval=SECONDS_PER_LINE,
        miniters=1,
        bar_format="{desc}: {n_fmt}/{total_fmt}, {elapsed} gone, {remaining} to go, {rate_fmt}{postfix}",
    )
