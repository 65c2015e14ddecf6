"""Fronts of six budgets, from the runs of `front.sh`, beside searches of their own, from `results.json`.

python experiments/search/front.py        # writes front.json and prints the table of the README
"""

import csv
import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev

HERE = Path(__file__).parent
SEARCH = ["search=guided"]
RUNS = HERE.parents[1] / "outputs" / "studies" / "front"


def alone() -> dict[tuple[float, int], dict[str, float]]:
    """What the search of `front.sh` found for one budget alone, and for what, by budget and seed."""
    found = {}
    for record in json.loads((HERE / "results.json").read_text()):
        changed = [key for key in record["overrides"] if key.startswith("search")]
        if record["task"].endswith(" bit") and changed == SEARCH and record["stands_at"] == "end":
            key = float(record["task"].removesuffix(" bit")), record["seed"]
            found[key] = {"kl": record["kl_unseen"], "tokens": record["token_equivalents"]}
    return found


def points() -> list[dict[str, float]]:
    """A record for each seed and budget."""
    own, found = alone(), []
    for path in sorted(RUNS.glob("*/front.csv")):
        seed = int(path.parent.name)
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                target, tokens = float(row["target"]), round(float(row["token_equivalents"]))
                kl = {f"kl_{key}": round(float(row[f"kl_{key}"]), 5) for key in ("searched", "uniform", "additive")}
                beside = {f"{key}_alone": value for key, value in own.get((target, seed), {}).items()}
                found.append({"seed": seed, "target": target, "tokens": tokens} | kl | beside)
    return found


def spread(values: list[float]) -> str:
    return f"{fmean(values):.3f} ± {stdev(values):.3f}" if len(values) > 1 else "".join(f"{v:.3f}" for v in values)


def main() -> None:
    records = points()
    (HERE / "front.json").write_text(json.dumps(records, indent=1) + "\n")
    by_target: dict[float, list[dict[str, float]]] = defaultdict(list)
    for record in records:
        by_target[record["target"]].append(record)
    print("| bits | uniform | additive (layer errors) | front | searches of their own | tokens, share |")
    print("|---|---|---|---|---|---|")
    for target, members in sorted(by_target.items(), reverse=True):
        fixed = " | ".join(f"{members[0][f'kl_{key}']:.3f}" for key in ("uniform", "additive"))
        both = [m for m in members if "kl_alone" in m]
        kls = f"{spread([m['kl_searched'] for m in members])} | {spread([m['kl_alone'] for m in both])}"
        share = sum(m["tokens"] for m in both) / sum(m["tokens_alone"] for m in both) if both else 1.0
        print(f"| {target:g} | {fixed} | {kls} | {share:.0%} |")
    both = [m for m in records if "kl_alone" in m]
    together, apart = (sum(m[key] for m in both) for key in ("tokens", "tokens_alone"))
    print(f"{together:,.0f} token equivalents together, {apart:,.0f} apart, of {len(both)} searches each")


if __name__ == "__main__":
    main()
