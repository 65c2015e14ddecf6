"""Collects what `measure.sh` measured.

python experiments/tuning/collect.py        # writes results.json next to this file, and prints the table of the README
"""

import json
import logging
from collections.abc import Sequence
from datetime import date
from pathlib import Path

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


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rows = measured()
    (HERE / "results.json").write_text(json.dumps({"date": str(date.today()), "rows": rows}, indent=1) + "\n")
    log.info("%s", table(rows))


if __name__ == "__main__":
    main()
