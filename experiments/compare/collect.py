"""Collects what `measure.sh` measured: one row per study and method, mean and spread over seeds.

python experiments/compare/collect.py        # adds what outputs/studies holds to results.json next to this file
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev

log = logging.getLogger("compare")

HERE = Path(__file__).parent
STUDIES = HERE.parents[1] / "outputs" / "studies"


def records() -> Iterator[dict[str, object]]:
    """One record per run."""
    for path in sorted(STUDIES.glob("*/*/*/results.json")):
        results = json.loads(path.read_text())
        (data_set,) = results["searched"]["kl"]
        yield {
            "study": path.parts[-4],
            "method": path.parts[-3],
            "seed": results["seed"],
            "achieved": results["budget"]["achieved"],
            "token_equivalents": results["tokens"]["search"],
            "seconds": results["seconds"]["search"],
            "kl": results["searched"]["kl"][data_set],
            "perplexity": results["searched"]["perplexity"][data_set],
            "kl_uniform": results["uniform"]["kl"][data_set],
        }


def table(rows: list[dict]) -> str:
    """Markdown, one row per study and method."""
    lines = ["| study | method | seeds | token equivalents | unseen KL | perplexity |", "|---|---|---|---|---|---|"]
    for study, method in dict.fromkeys((row["study"], row["method"]) for row in rows):
        runs = [row for row in rows if (row["study"], row["method"]) == (study, method)]
        kl = [row["kl"] for row in runs]
        spread = f" ± {stdev(kl):.3f}" if len(kl) > 1 else ""
        tokens, perplexity = mean(row["token_equivalents"] for row in runs), mean(row["perplexity"] for row in runs)
        lines.append(
            f"| {study} | {method} | {len(runs)} | {tokens:,.0f} | {mean(kl):.3f}{spread} | {perplexity:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    path = HERE / "results.json"
    known = json.loads(path.read_text()) if path.exists() else []
    by_run = {(row["study"], row["method"], row["seed"]): row for row in [*known, *records()]}
    rows = [by_run[key] for key in sorted(by_run)]
    path.write_text(json.dumps(rows, indent=1) + "\n")
    log.info("%s", table(rows))


if __name__ == "__main__":
    main()
