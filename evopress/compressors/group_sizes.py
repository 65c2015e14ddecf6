"""The group sizes that fit a layer: how many columns share a scale."""

import logging
from functools import cache
from typing import NamedTuple

log = logging.getLogger(__name__)


class IntegerFormat(NamedTuple):
    """A width of codes, and the columns per scale."""

    bits: int
    group_size: int


def group_sizes_of(cols: int, sizes: int | tuple[int, ...]) -> tuple[int, ...]:
    """The sizes for a layer with `cols` inputs. If there are several, all must divide `cols`.

    A single size that does not divide `cols` is replaced by a smaller one.

    Raises:
        ValueError: One of several sizes does not divide `cols`, or there is no size to replace a single one.
    """
    if isinstance(sizes, int):
        return (fitting_group_size(cols, sizes),)
    wrong = [size for size in sizes if cols % size]
    if wrong:
        raise ValueError(
            f"compress.group_size lists {wrong[0]}, which does not divide the {cols} inputs of a layer: list divisors "
            f"of {cols}, or set compress.group_size to a single number"
        )
    return sizes


@cache
def fitting_group_size(cols: int, group_size: int) -> int:
    """`group_size` if it divides `cols`, or else the largest smaller size of 128, 64, 32 and 16 that does.

    A smaller size is logged once for each number of columns.

    Raises:
        ValueError: None of them divides `cols`.
    """
    for size in (group_size, *(size for size in (128, 64, 32, 16) if size < group_size)):
        if cols % size == 0:
            if size != group_size:
                log.info("layers with %d inputs use groups of %d, because %d is not a divisor", cols, size, group_size)
            return size
    raise ValueError(
        f"compress.group_size is {group_size}, but neither it nor a smaller size of 128, 64, 32 and 16 divides the "
        f"{cols} inputs of a layer: set compress.group_size to a divisor of {cols}"
    )
