"""What fits into the memory: the bits per weight that are left for the layers, by context and by type of the cache.

Only the configuration of the model is needed, so the table is printed before anything is loaded, and also for budgets
that no profile meets.
"""

from dataclasses import replace
from fractions import Fraction

from evopress.compressors.drop import Drop
from evopress.export import cache_types_of
from evopress.planning.planned_run import PlannedRun, space_of
from evopress.space.byte_sizes import in_bytes, parse_bytes
from evopress.space.memory import CACHE_TYPES, MemoryBudget
from evopress.space.units import Space

STEPS = (Fraction(1, 4), Fraction(1, 2), 1, 2, 4)
"""Contexts of the table, relative to that of the budget."""


def what_fits_text(run: PlannedRun, budget: MemoryBudget) -> str:
    """The table for the model of `run`: a row per context, a column per type of the cache."""
    types = cache_types(budget.kv, cache_types_of(run.job.export))
    contexts = contexts_around(budget.context, run.model.max_context)
    target, reserve, space = parse_bytes(budget.target), parse_bytes(budget.reserve), run.space
    lines = [
        f"budget.target, {in_bytes(target)}, holds the weights, the cache of {budget.batch} x context tokens, and "
        f"budget.reserve, {in_bytes(reserve)}",
        f"weights without levels: {in_bytes(space.fixed_bytes)}",
        _meaning(run),
        "",
        f"{'context':>9}" + "".join(f"{f'cache in {kv}':>18}{'left':>8}" for kv in types),
        "-" * (9 + 26 * len(types)),
    ]
    for context in contexts:
        line = f"{context:9}"
        for kv in types:
            cell = replace(budget, context=context, kv=kv, also=None)
            priced = space_of(replace(run.job, budget=cell), run.model)
            cache = cell.parts(priced, priced.uniform(0))["cache"]
            line += f"{in_bytes(cache):>18}{left(priced, cell, is_drop=isinstance(run.job.compress, Drop)):>8}"
        lines.append(line)
    return "\n".join(lines)


def cache_types(chosen: str, known: tuple[str, ...]) -> list[str]:
    """The chosen type of the cache, then the types of the engine that take less, from large to small."""
    per_number = {kv: Fraction(CACHE_TYPES[kv].num_bytes, CACHE_TYPES[kv].block) for kv in (chosen, *known)}
    smaller = sorted((kv for kv in known if per_number[kv] < per_number[chosen]), key=lambda kv: -per_number[kv])
    return [chosen, *smaller]


def contexts_around(context: int, longest: int | None) -> list[int]:
    """The context of the budget, and others below and above it up to the longest that the model was made for."""
    others = {int(step * context) for step in STEPS}
    return sorted({context, *(other for other in others if 0 < other <= (longest or context))})


def left(space: Space, budget: MemoryBudget, *, is_drop: bool) -> str:
    """What is left for the units: their bits per weight, or the share of them that may be kept if they are dropped.

    If nothing is dropped, every cache stays. A dash means that even the smallest levels do not fit.
    """
    (cap,) = budget.caps(space)
    if is_drop:
        share = cap.max_cost / space.cost(space.uniform(0))
        return f"{min(share, 1.0):.0%}" if share >= 0 else "-"
    caches = space.cost([0] * len(space), space.children)
    room = cap.max_cost - caches
    most_compressed = space.uniform(max(len(unit.levels) for unit in space.units))
    if room < space.cost(most_compressed) - caches:
        return "-"
    return f"{min(16.0, 8 * room / space.num_weights):.2f}"


def _meaning(run: PlannedRun) -> str:
    """What the numbers in the table mean, and the sizes of the levels to compare them with."""
    if isinstance(run.job.compress, Drop):
        return "left: the share of attentions and MLPs, by their bytes and caches, that can be kept"
    space = run.space
    levels = []
    for level in range(max(len(unit.levels) for unit in space.units)):
        profile = space.uniform(level)
        bits = 8 * (space.size_bytes(profile) - space.fixed_bytes) / space.num_weights
        levels.append(f"{bits:.2f}")
    or_drops = " or drops" if run.space.children else ""
    return (
        f"left: bits per weight, scales included, for the {space.num_weights:,} weights with levels; the levels of "
        f"compress take {', '.join(levels)} (16: no need to compress, -: needs a shorter context{or_drops})"
    )
