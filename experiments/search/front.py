"""What fronts found for each budget, beside searches of their own: `front.json` from their tables, and a table.

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
    "searches of their own": ["search=guided"],
    "with generations": ["search=guided", "search.rounds=4", "search.generations=6", "search.refinements=0"],
}
"""Searches for one budget alone, by what their commands changed; the first is that of `front.sh`."""

ByBudget = dict[float, list[dict[str, float]]]


def alone(changes: list[str]) -> ByBudget:
    """What a search found for one budget alone, and for what: a record for each seed, by budget."""
    found: ByBudget = defaultdict(list)
    for record in json.loads((HERE / "results.json").read_text()):
        changed = [key for key in record["overrides"] if key.startswith("search")]
        if record["task"].endswith(" bit") and changed == changes and record["stands_at"] == "end":
            budget = float(record["task"].removesuffix(" bit"))
            found[budget].append({"kl": record["kl_unseen"], "tokens": record["token_equivalents"]})
    return found


def points() -> list[dict[str, float]]:
    """A record for each seed and budget of the fronts."""
    found = []
    for path in sorted(RUNS.glob("*/front.csv")):
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                tokens = round(float(row["token_equivalents"]))
                record = {"seed": int(path.parent.name), "target": float(row["target"]), "tokens": tokens}
                kls = {f"kl_{key}": round(float(row[f"kl_{key}"]), 5) for key in ("searched", "uniform", "additive")}
                found.append(record | kls)
    return found


def spread(kls: list[float]) -> str:
    return f"{fmean(kls):.3f} ± {stdev(kls):.3f}" if len(kls) > 1 else ", ".join(f"{kl:.3f}" for kl in kls)


def main() -> None:
    records = points()
    (HERE / "front.json").write_text(json.dumps(records, indent=1) + "\n")
    fronts: ByBudget = defaultdict(list)
    for record in records:
        fronts[record["target"]].append(record)
    own = {name: alone(changes) for name, changes in SEARCHES.items()}
    heads = ("bits", "uniform", "additive (layer errors)", "front", *SEARCHES, "tokens, share")
    print(f"| {' | '.join(heads)} |")
    print(f"|{'---|' * len(heads)}")
    together = apart = 0.0
    for target, front in sorted(fronts.items(), reverse=True):
        fixed = [f"{front[0][f'kl_{key}']:.3f}" for key in ("uniform", "additive")]
        kls = [
            spread([m["kl_searched"] for m in front]),
            *(spread([m["kl"] for m in of[target]]) for of in own.values()),
        ]
        tokens = [fmean(m["tokens"] for m in group) for group in (front, next(iter(own.values()))[target])]
        together, apart = together + tokens[0], apart + tokens[1]
        print(f"| {' | '.join([f'{target:g}', *fixed, *kls, f'{tokens[0] / tokens[1]:.0%}'])} |")
    print(f"{together:,.0f} token equivalents together, {apart:,.0f} apart, {together / apart:.1%}")


if __name__ == "__main__":
    main()
