"""Small artificial spaces, and a function that runs a search on them with a known fitness."""

from collections.abc import Callable
from dataclasses import replace
from random import Random

from evopress.search.base import Batch, Question, Search
from evopress.space.budget import Budget
from evopress.space.droppable import Granularity, droppable_units
from evopress.space.shapes import BlockShape
from evopress.space.units import DROPPED, KEPT, Level, Profile, Space, Unit

BITS3 = Budget(metric="bits", target=3)


def bit_space(sizes: list[int], bits: tuple[int, ...] = (4, 3, 2), trade: str = "size") -> Space:
    """One unit per size, with one level per width."""
    units = [
        Unit(
            name=f"layer{i}",
            blocks=(i,),
            kind="linear",
            layers=(f"layer{i}",),
            num_weights=size,
            levels=tuple(Level(label=f"{b}bit", value=b, cost=b * size, size_bytes=b * size // 8) for b in bits),
        )
        for i, size in enumerate(sizes)
    ]
    return Space(tuple(units)).with_trade_groups(trade)


def drop_space(num_blocks: int) -> Space:
    """An attention and an MLP per block."""
    kept = Level(label="kept", value=0, cost=1, size_bytes=0)
    dropped = Level(label="dropped", value=1, cost=0, size_bytes=0)
    units = [
        Unit(name=f"{b}.{k}", blocks=(b,), kind=k, layers=(), num_weights=8, levels=(kept, dropped), trade_group=k)
        for b in range(num_blocks)
        for k in ("attention", "mlp")
    ]
    return Space(tuple(units))


def block_space(granularity: Granularity, keep_mlp: tuple[int, ...] = ()) -> Space:
    """The droppable units of four blocks."""
    shapes = [BlockShape(f"layers.{index}", attention=10, mlp=20) for index in range(4)]
    return Space(tuple(droppable_units(shapes, granularity, keep_mlp=keep_mlp)))


def joint_space(num_blocks: int, sizes: tuple[int, ...] = (8, 16, 24), bits: tuple[int, ...] = (4, 3, 2)) -> Space:
    """Per block an attention and an MLP that may be dropped, each with one layer per size, with one level per width."""
    units = []
    for b in range(num_blocks):
        for part in ("attention", "mlp"):
            name = f"blocks.{b}.{part}"
            units.append(Unit(name=name, blocks=(b,), kind=part, layers=(), num_weights=0, levels=(KEPT, DROPPED)))
            layers = [replace(unit, name=f"{name}.{unit.name}") for unit in bit_space(list(sizes), bits).units]
            units += [replace(u, blocks=(b,), layers=(u.name,), parent=name, trade_group="all") for u in layers]
    return Space(tuple(units))


def sparse_space(num_blocks: int, step: int = 10, size: int = 100) -> Space:
    """Two layers per block, at 30 … 70 % sparsity."""
    levels = tuple(
        Level(label=f"{zeros / size:g}", value=zeros / size, cost=size - zeros, size_bytes=2 * (size - zeros))
        for zeros in range(30, 71, step)
    )
    units = [
        Unit(name=f"{b}.{k}", blocks=(b,), kind=k, layers=(f"{b}.{k}",), num_weights=size, levels=levels)
        for b in range(num_blocks)
        for k in ("q", "o")
    ]
    return Space(tuple(units))


def linear_fitness(weights: list[float]) -> Callable[[Profile], float]:
    return lambda profile: sum(weight * level for weight, level in zip(weights, profile, strict=True))


def play(
    method: Search,
    space: Space,
    budget: Budget,
    fitness: Callable[[Profile], float],
    seed: int = 0,
    table: Callable[[Question], list[list[float]]] = lambda question: [],
) -> tuple[Profile, list[Question]]:
    """Answer every question with `fitness` or `table`. Returns the profile and all questions."""
    run = method.run(space, budget, Random(seed))
    questions: list[Question] = []
    try:
        question = next(run)
        while True:
            questions.append(question)
            is_batch = isinstance(question, Batch)
            question = run.send([fitness(profile) for profile in question.profiles] if is_batch else table(question))
    except StopIteration as stop:
        return stop.value, questions
