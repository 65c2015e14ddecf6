"""Collects what `measure.sh` measured: one row per budget and method, mean and spread over seeds.

python experiments/joint/collect.py        # adds what outputs/studies/joint holds to results.json next to this file
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev

log = logging.getLogger("joint")

HERE = Path(__file__).parent
STUDY = HERE.parents[1] / "outputs" / "studies" / "joint"


def records() -> Iterator[dict[str, object]]:
    """One record per run."""
    for path in sorted(STUDY.glob("*/*/results.json")):
        results = json.loads(path.read_text())
        if "done" not in results:
            continue
        units = json.loads((path.parent / "profile.json").read_text())["units"]
        (data_set,) = results["searched"]["kl"]
        space, _, search = path.parent.name.rpartition("-")[0].partition("-")
        yield {
            "task": path.parts[-3],
            "space": space,
            "search": search,
            "seed": results["seed"],
            "token_equivalents": round(results["tokens"]["search"]),
            "seconds": results["seconds"]["search"],
            "kl_unseen": results["searched"]["kl"][data_set],
            "perplexity_unseen": results["searched"]["perplexity"][data_set],
            "kl_uniform": results["uniform"]["kl"][data_set],
            "cost": results["searched"]["size_bytes"],
            "dropped": [unit["unit"] for unit in units if unit["label"] == "dropped" and "inside" not in unit],
        }


def table(rows: list[dict]) -> str:
    """Markdown, one row per budget, space and search."""
    lines = ["| bytes of | space | search | seeds | token equivalents | dropped | unseen KL | perplexity |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for key in dict.fromkeys((row["task"], row["space"], row["search"]) for row in rows):
        runs = [row for row in rows if (row["task"], row["space"], row["search"]) == key]
        kl = [row["kl_unseen"] for row in runs]
        spread = f" ± {stdev(kl):.3f}" if len(kl) > 1 else ""
        tokens, perplexity = (mean(row[name] for row in runs) for name in ("token_equivalents", "perplexity_unseen"))
        drops = ", ".join(str(len(row["dropped"])) for row in runs)
        lines.append(
            f"| {' | '.join(key)} | {len(runs)} | {tokens:,.0f} | {drops} | {mean(kl):.3f}{spread} | {perplexity:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    path = HERE / "results.json"
    known = json.loads(path.read_text()) if path.exists() else []
    by_run = {(row["task"], row["space"], row["search"], row["seed"]): row for row in [*known, *records()]}
    rows = [by_run[key] for key in sorted(by_run)]
    path.write_text(json.dumps(rows, indent=1) + "\n")
    log.info("%s", table(rows))


if __name__ == "__main__":
    main()
