"""Fronts of six budgets, from the runs of `front.sh`, beside searches of their own, from `results.json`.

python experiments/search/front.py        # writes front.json and prints the table of the README
"""

import csv
import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev

HERE = Path(__file__).parent
RUNS = HERE.parents[1] / "outputs" / "studies" / "front"
SEARCHES = {
    "guided": ["search=guided"],
    "generations": ["search=guided", "search.rounds=4", "search.generations=6", "search.refinements=0"],
}
"""Searches of their own, by what their commands changed; the first is that of `front.sh`."""


def alone(search: str) -> dict[tuple[float, int], dict[str, float]]:
    """What a search found for one budget alone, and for what, by budget and seed."""
    found = {}
    for record in json.loads((HERE / "results.json").read_text()):
        changed = [key for key in record["overrides"] if key.startswith("search")]
        if record["task"].endswith(" bit") and changed == SEARCHES[search] and record["stands_at"] == "end":
            key = float(record["task"].removesuffix(" bit")), record["seed"]
            found[key] = {f"kl_{search}": record["kl_unseen"], f"tokens_{search}": record["token_equivalents"]}
    return found


def points() -> list[dict[str, float]]:
    """A record for each seed and budget."""
    own, found = [alone(search) for search in SEARCHES], []
    for path in sorted(RUNS.glob("*/front.csv")):
        seed = int(path.parent.name)
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                target, tokens = float(row["target"]), round(float(row["token_equivalents"]))
                record = {"seed": seed, "target": target, "tokens": tokens}
                for key in ("kl_searched", "kl_uniform", "kl_additive"):
                    record[key] = round(float(row[key]), 5)
                for of_search in own:
                    record |= of_search.get((target, seed), {})
                found.append(record)
    return found


def spread(values: list[float]) -> str:
    return f"{fmean(values):.3f} ± {stdev(values):.3f}" if len(values) > 1 else "".join(f"{v:.3f}" for v in values)


def main() -> None:
    records = points()
    (HERE / "front.json").write_text(json.dumps(records, indent=1) + "\n")
    by_target: dict[float, list[dict[str, float]]] = defaultdict(list)
    for record in records:
        by_target[record["target"]].append(record)
    heads = ("bits", "uniform", "additive", "front", "searches of their own", "with generations", "tokens, share")
    print(f"| {' | '.join(heads)} |")
    print(f"|{'---|' * len(heads)}")
    for target, members in sorted(by_target.items(), reverse=True):
        fixed = [f"{members[0][f'kl_{key}']:.3f}" for key in ("uniform", "additive")]
        kls = [spread([m[f"kl_{key}"] for m in members if f"kl_{key}" in m]) for key in ("searched", *SEARCHES)]
        both = [m for m in members if "tokens_guided" in m]
        share = f"{sum(m['tokens'] for m in both) / sum(m['tokens_guided'] for m in both):.0%}" if both else ""
        print(f"| {' | '.join([f'{target:g}', *fixed, *kls, share])} |")
    for search in SEARCHES:
        both = [m for m in records if f"tokens_{search}" in m]
        together, apart = (sum(m[key] for m in both) for key in ("tokens", f"tokens_{search}"))
        print(f"{together:,.0f} token equivalents together, {apart:,.0f} apart, of {len(both)} searches ({search})")


if __name__ == "__main__":
    main()
