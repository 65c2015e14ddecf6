"""Collects what `measure.sh` measured: uniform profiles at 2, 3 and 4 bits of each kind of levels.

python experiments/levels/collect.py        # writes results.json next to this file, and prints the table of the README
"""

import json
import logging
from datetime import date
from pathlib import Path

log = logging.getLogger("levels")

HERE = Path(__file__).parent
STUDY = HERE.parents[1] / "outputs" / "studies" / "levels"
ROWS = {
    "paper": "as in the paper of GPTQ: columns as they stand, ranges from the smallest to the largest weight",
    "order": "columns ordered by the power of their inputs",
    "range": "ordered, and ranges searched",
    "refit": "ordered, ranges searched, scales refitted",
    "all": "the same, and tokens weighted: the default",
    "single": "the default, with a database of each width alone",
    "all-1": "the default, other calibration windows",
    "all-2": "the default, again others",
}
"""Names of runs, and what the table calls them."""

BITS = (2, 3, 4)

Figures = dict[str, dict[str, dict[str, float]]]
"""By run and bits: KL and perplexity."""


def measured() -> Figures:
    figures: Figures = {}
    for name in ROWS:
        for bits in BITS:
            path = STUDY / f"{name}-{bits}" / "results.json"
            if path.exists() and "done" in (results := json.loads(path.read_text())):
                cells = {key: next(iter(results["searched"][key].values())) for key in ("kl", "perplexity")}
                figures.setdefault(name, {})[str(bits)] = cells
    return figures


def table(figures: Figures) -> str:
    """Markdown: KL, and perplexity in brackets."""
    lines = ["| levels | 2 bit | 3 bit | 4 bit |", "|---|---|---|---|"]
    for name, title in ROWS.items():
        if name in figures:
            cells = [figures[name].get(str(bits)) for bits in BITS]
            shown = [f"{cell['kl']:.3f} ({cell['perplexity']:.1f})" if cell else "" for cell in cells]
            lines.append(f"| {title} | {' | '.join(shown)} |")
    return "\n".join(lines)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    figures = measured()
    (HERE / "results.json").write_text(json.dumps({"date": str(date.today()), "figures": figures}, indent=1) + "\n")
    log.info("%s", table(figures))


if __name__ == "__main__":
    main()
