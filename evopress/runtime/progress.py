"""Shows the progress of long stages: a bar in a terminal, otherwise a line in the log every half minute."""

import logging
import sys
from collections.abc import Iterable
from io import StringIO

from tqdm import tqdm

from evopress.runtime import distributed

log = logging.getLogger(__name__)

SECONDS_PER_LINE = 30


class _Lines(tqdm):
    """A tqdm that logs lines instead of drawing a bar."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if self.n:
            log.info("%s", msg or str(self))


def progress(items: Iterable | None = None, *, desc: str, unit: str, total: int | None = None) -> tqdm:
    """A tqdm over `items`, or one to update by hand if there are none. Only the first of several processes shows it."""
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
        bar_format="{desc}: {n_fmt}/{total_fmt}, {elapsed} elapsed, {remaining} left, {rate_fmt}{postfix}",
    )
