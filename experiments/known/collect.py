"""Collects what `measure.sh` measured, as the latest run in `results.json`, and prints the table of the README.

python experiments/known/collect.py bfloat16|float32     # the type that the machine multiplies in
"""

import json
import logging
import sys
from datetime import date
from pathlib import Path

log = logging.getLogger("known")

HERE = Path(__file__).parent
RUNS = HERE.parents[1] / "outputs" / "studies" / "known"
ROWS = {
    "dense": "dense",
    "gptq-6": "GPTQ, group 64, all layers at 6 bit",
    "gptq-5": "5 bit",
    "gptq-4": "4 bit",
    "gptq-3": "3 bit",
    "sparsegpt": "SparseGPT, all layers at 50 %",
    "magnitude": "magnitude, all layers at 50 %",
    "attention12": "attention of block 12 dropped",
    "mlp12": "MLP of block 12 dropped",
    "block20": "block 20 dropped",
}
"""Names of runs, and what the table calls them. `dense` is a part of every run."""

Figures = dict[str, dict[str, float]]


def measured() -> Figures:
    """Perplexity and KL by name of the run."""
    figures = {}
    for name in ROWS:
        run = json.loads((RUNS / ("gptq-3" if name == "dense" else name) / "results.json").read_text())
        candidate = run["dense" if name == "dense" else "searched"]
        figures[name] = {key: next(iter(candidate[key].values())) for key in ("perplexity", "kl")}
    return figures


def table(results: dict) -> str:
    """Markdown: the latest run of each type, next to the known figures."""
    latest = {run["dtype"]: run["measured"] for run in sorted(results["runs"], key=lambda run: run["date"])}
    lines = [
        "| | perplexity | KL | in float32: perplexity | KL | known: perplexity | KL |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, title in ROWS.items():
        columns = [latest["bfloat16"][name], latest["float32"][name], results["known"][name]]
        cells = [f"{value:.4g}" for column in columns for value in (column["perplexity"], column["kl"])]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(dtype: str) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    path = HERE / "results.json"
    results = json.loads(path.read_text())
    results["runs"].append({"date": date.today().isoformat(), "dtype": dtype, "measured": measured()})
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    log.info("%s", table(results))


if __name__ == "__main__":
    main(sys.argv[1])
