"""Counts the generations that Algorithm 1 needs on a linear fitness, to compare them with k(n-k)/λ.

    python experiments/convergence/simulate.py

`k` of `n` units are dropped; the fitness of a profile is the sum of random weights of what it drops, without noise. The
search is the one of the package, with one switch per mutant, as in Theorem 2 of arXiv 2410.14649, and with up to three.
Writes `results.json` next to this file.
"""

import json
import logging
from pathlib import Path
from random import Random
from statistics import mean, stdev

from evopress.search.base import Batch
from evopress.search.evolution import Evolution
from evopress.search.selection import Stage
from evopress.space.budget import Budget
from evopress.space.units import Level, Profile, Space, Unit

log = logging.getLogger("convergence")

CASES = [(16, 4), (32, 8), (64, 8), (64, 16), (64, 32), (128, 32)]
OFFSPRING = [1, 2, 4, 8, 16, 32, 64]
SEEDS = range(20)


def space(n: int) -> Space:
    """n units that are kept or dropped."""
    levels = (Level(label="kept", value=0, cost=1, size_bytes=0), Level(label="dropped", value=1, cost=0, size_bytes=0))
    units = [
        Unit(name=str(i), blocks=(i,), kind="block", layers=(), num_weights=1, levels=levels, trade_group="block")
        for i in range(n)
    ]
    return Space(tuple(units))


def generations(n: int, k: int, offspring: int, max_switches: int, seed: int) -> int:
    """Generations until the parent is the optimum."""
    rng = Random(seed)
    weights = [rng.random() for _ in range(n)]
    best = sum(sorted(weights)[:k])

    def fitness(profile: Profile) -> float:
        return sum(weight * level for weight, level in zip(weights, profile, strict=True))

    search = Evolution(
        generations=100_000,
        offspring=offspring,
        stages=[Stage(survivors=1, tokens=1)],
        initial_candidates=1,
        initial_tokens=1,
        max_switches=max_switches,
    )
    run = search.run(space(n), Budget(metric="drop", target=k / n), Random(seed))
    question, asked = next(run), 0
    while True:
        assert isinstance(question, Batch)
        answer = [fitness(profile) for profile in question.profiles]
        if min(answer) <= best + 1e-9:
            return asked
        question, asked = run.send(answer), asked + 1


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rows = []
    for max_switches in (1, 3):
        for n, k in CASES:
            for offspring in OFFSPRING:
                counts = [generations(n, k, offspring, max_switches, seed) for seed in SEEDS]
                bound = k * (n - k) / offspring
                row: dict[str, float] = {"n": n, "k": k, "offspring": offspring, "max_switches": max_switches}
                row |= {"mean": mean(counts), "stdev": stdev(counts), "bound": bound, "ratio": mean(counts) / bound}
                rows.append(row)
                log.info(
                    "n=%d k=%d λ=%d switches≤%d: %.1f ± %.1f generations, k(n-k)/λ = %.1f, ratio %.2f", *row.values()
                )
    (Path(__file__).parent / "results.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
