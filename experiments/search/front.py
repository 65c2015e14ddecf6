"""The front of six budgets beside six searches of their own, from the runs of `front.sh`; writes `front.json`.

python experiments/search/front.py
"""

import csv
import json
from pathlib import Path

HERE = Path(__file__).parent
RUNS = HERE.parents[1] / "outputs" / "studies" / "front"


def separate(target: float) -> dict[str, dict[str, float]]:
    """By seed, what a search for this budget alone found and cost."""
    found = {}
    for path in sorted(RUNS.glob(f"{target:g}-*/results.json")):
        results = json.loads(path.read_text())
        (kl,) = results["searched"]["kl"].values()
        found[path.parent.name.rpartition("-")[2]] = {"kl": round(kl, 5), "tokens": results["tokens"]["search"]}
    return found


def main() -> None:
    records = []
    for path in sorted(RUNS.glob("together-*/front.csv")):
        seed = path.parent.name.rpartition("-")[2]
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                point = {key: round(float(row[f"kl_{key}"]), 5) for key in ("searched", "uniform", "additive")}
                alone = separate(float(row["target"]))
                tokens = round(float(row["token_equivalents"]))
                records.append(
                    {"seed": int(seed), "target": float(row["target"]), "tokens": tokens} | point | {"alone": alone}
                )
    (HERE / "front.json").write_text(json.dumps(records, indent=1) + "\n")
    for record in records:
        print(record)
    together = sum(record["tokens"] for record in records)
    apart = sum(
        record["alone"][str(record["seed"])]["tokens"] for record in records if str(record["seed"]) in record["alone"]
    )
    print(f"{together:,.0f} token equivalents together, {apart:,.0f} apart")


if __name__ == "__main__":
    main()
