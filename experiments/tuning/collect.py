"""Collects what `measure.sh` measured.

python experiments/tuning/collect.py        # writes results.json next to this file, and prints the table of the README
"""

import json
import logging
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

log = logging.getLogger("tuning")

HERE = Path(__file__).parent
STUDY = HERE.parents[1] / "outputs" / "studies" / "tuning"

Row = dict[str, float]


def measured() -> list[Row]:
    """One row per number of tokens, and one without tuning."""
    rows: dict[int, Row] = {}
    for path in sorted(STUDY.glob("*/results.json"), key=lambda path: int(path.parent.name)):
        results = json.loads(path.read_text())
        tuning = results["tuning"]["tuned"]
        for tokens, name, cost in ((0, "uniform", 0.0), (int(path.parent.name), "tuned", tuning["token_equivalents"])):
            kl, perplexity = (next(iter(results[name][key].values())) for key in ("kl", "perplexity"))
            rows[tokens] = {"tokens": tokens, "token_equivalents": cost, "kl": kl, "perplexity": perplexity}
    return list(rows.values())


def table(rows: Sequence[Row]) -> str:
    """Markdown, one row per number of tokens."""
    lines = ["| tuning tokens | token equivalents | KL | perplexity |", "|---|---|---|---|"]
    for row in rows:
        cost = f"{row['token_equivalents']:,.0f}"
        lines.append(f"| {row['tokens']:,.0f} | {cost} | {row['kl']:.3f} | {row['perplexity']:.1f} |")
    return "\n".join(lines)


def table_of_kinds(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, one row per budget and kind of parameter: KL, with the perplexity in brackets."""

    def cell(scores: Mapping[str, float]) -> str:
        return f"{scores['kl']:.3f} ({scores['perplexity']:.1f})"

    lines = [
        "| budget and what is tuned | searched | tuned | token equivalents: search | tuning |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        costs = (f"{row[f'{stage}_token_equivalents']:,.0f}" for stage in ("search", "tuning"))
        lines.append(f"| {row['name']} | {cell(row['searched'])} | {cell(row['tuned'])} | {' | '.join(costs)} |")
    return "\n".join(lines)


def table_of_recipes(losses: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Markdown, one row per recipe: by how much the held-out loss of each block falls."""
    lines = ["| recipe | " + " | ".join(f"block {block}" for block in losses) + " |", "|---|" + "---|" * len(losses)]
    for recipe in next(iter(losses.values())):
        falls = [1 - after / before for before, after in (of_block[recipe] for of_block in losses.values())]
        lines.append(f"| {recipe} | {' | '.join(f'{fall:.1%}' for fall in falls)} |")
    return "\n".join(lines)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rows = measured()
    (HERE / "results.json").write_text(json.dumps({"date": str(date.today()), "rows": rows}, indent=1) + "\n")
    log.info("%s", table(rows))


if __name__ == "__main__":
    main()
