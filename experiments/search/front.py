"""Collects six budgets in one run, writes `front.json`, and prints a table that compares them with separate searches.

python experiments/search/front.py
"""

import csv
import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev

HERE = Path(__file__).parent
RUNS = HERE.parents[1] / "outputs" / "studies" / "front"
SEARCHES = {
    "separate searches": ["search=guided"],
    "with generations": ["search=guided", "search.rounds=4", "search.generations=6", "search.refinements=0"],
}
"""Separate searches, by the options of their commands; the first is that of `front.sh`."""

Record = dict[str, float]
RecordsByBudget = dict[float, list[Record]]


def separate_searches(options: list[str]) -> RecordsByBudget:
    """KL and tokens of every seed of a search for one budget alone."""
    records: RecordsByBudget = defaultdict(list)
    for record in json.loads((HERE / "results.json").read_text()):
        search_options = [override for override in record["overrides"] if override.startswith("search")]
        if record["task"].endswith(" bit") and search_options == options and record["stands_at"] == "end":
            budget = float(record["task"].removesuffix(" bit"))
            records[budget].append({"kl": record["kl_unseen"], "tokens": record["token_equivalents"]})
    return records


def read_fronts() -> list[Record]:
    """A record for each seed and budget."""
    records = []
    for path in sorted(RUNS.glob("*/front.csv")):
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                tokens = round(float(row["token_equivalents"]))
                record = {"seed": int(path.parent.name), "target": float(row["target"]), "tokens": tokens}
                kls = {f"kl_{key}": round(float(row[f"kl_{key}"]), 5) for key in ("searched", "uniform", "additive")}
                records.append(record | kls)
    return records


def by_budget(fronts: list[Record]) -> RecordsByBudget:
    """From the largest budget to the smallest."""
    groups: RecordsByBudget = defaultdict(list)
    for record in sorted(fronts, key=lambda record: -record["target"]):
        groups[record["target"]].append(record)
    return groups


def mean_and_spread(kls: list[float]) -> str:
    return f"{fmean(kls):.3f} ± {stdev(kls):.3f}" if len(kls) > 1 else ", ".join(f"{kl:.3f}" for kl in kls)


def table(fronts: list[Record]) -> str:
    """Markdown, a row per budget."""
    separate = {name: separate_searches(options) for name, options in SEARCHES.items()}
    header = ("bits", "uniform", "additive (layer errors)", "front", *SEARCHES, "tokens, share")
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    for target, front in by_budget(fronts).items():
        fixed = [f"{front[0][f'kl_{key}']:.3f}" for key in ("uniform", "additive")]
        kls = [[record["kl_searched"] for record in front]]
        kls += [[record["kl"] for record in records[target]] for records in separate.values()]
        cells = [f"{target:g}", *fixed, *map(mean_and_spread, kls), f"{share_of_tokens(front, target):.0%}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def share_of_tokens(front: list[Record], target: float) -> float:
    """Tokens of one budget of a front, compared with a separate search."""
    alone = separate_searches(SEARCHES["separate searches"])[target]
    return fmean(record["tokens"] for record in front) / fmean(record["tokens"] for record in alone)


def total_tokens(fronts: list[Record]) -> tuple[float, float]:
    """Mean tokens of a whole front, and of separate searches for its budgets."""
    alone = separate_searches(SEARCHES["separate searches"])
    groups = by_budget(fronts)
    together = sum(fmean(record["tokens"] for record in front) for front in groups.values())
    return together, sum(fmean(record["tokens"] for record in alone[target]) for target in groups)


def main() -> None:
    fronts = read_fronts()
    (HERE / "front.json").write_text(json.dumps(fronts, indent=1) + "\n")
    together, apart = total_tokens(fronts)
    print(table(fronts))
    print(f"{together:,.0f} token equivalents together, {apart:,.0f} apart, {together / apart:.1%}")


if __name__ == "__main__":
    main()
