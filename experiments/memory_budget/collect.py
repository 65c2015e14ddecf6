"""Collects what `measure.sh` measured, and prints the tables of the README.

python experiments/memory_budget/collect.py        # writes results.json next to this file
"""

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

from evopress.space.byte_sizes import parse_bytes

log = logging.getLogger("memory_budget")

HERE = Path(__file__).parent
STUDY = HERE.parents[1] / "outputs" / "studies" / "memory_budget"

Record = dict[str, Any]


def files() -> list[Record]:
    """One record per file, by context, type of the cache and target: the predicted sizes, and what llama.cpp took."""
    records = []
    for path in STUDY.glob("*/llama.json"):
        budget = json.loads((path.parent / "results.json").read_text())["budget"]
        records.append(
            {"target": parse_bytes(budget["target"]), "foretold": budget["parts"], **json.loads(path.read_text())}
        )
    return sorted(records, key=lambda record: (record["context"], record["kv"], record["target"]))


def searches() -> list[Record]:
    """One record per search in the joint space."""
    records = []
    for path in sorted(STUDY.glob("joint-*/results.json")):
        results = json.loads(path.read_text())
        if "done" not in results:
            continue
        units = json.loads((path.parent / "profile.json").read_text())["units"]
        dropped = Counter(
            unit["unit"].rpartition(".")[2] for unit in units if unit["label"] == "dropped" and "inside" not in unit
        )
        (text,) = results["searched"]["kl"]
        records.append(
            {
                **{key: results["budget"][key] for key in ("context", "batch", "parts", "achieved")},
                "target": parse_bytes(results["budget"]["target"]),
                "attentions_dropped": dropped["attention"],
                "mlps_dropped": dropped["mlp"],
                "window": results["data"]["window"],
                "kl": results["searched"]["kl"][text],
                "kl_uniform": results["uniform"]["kl"][text],
            }
        )
    return sorted(records, key=lambda record: record["context"])


def caches() -> list[Record]:
    """Whether vLLM accepted a cache of the predicted size, and a smaller one."""
    return [json.loads(path.read_text()) for path in sorted(STUDY.glob("vllm-*.json"))]


def table_of_files(records: list[Record]) -> str:
    """Markdown: predicted and reported bytes, and the peak of the process, in MB."""
    lines = [
        "| context | type | target | weights | in llama.cpp | cache | in llama.cpp | peak | engine's own |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        foretold, reported = record["foretold"], record["reported"]
        own = record["peak"] - foretold["weights"] - foretold["cache"]
        numbers = [foretold["weights"], reported["weights"], foretold["cache"], reported["cache"], record["peak"], own]
        cells = [f"{number / 1e6:.1f}" for number in numbers]
        lines.append(f"| {record['context']} | {record['kv']} | {record['target'] / 1e6:.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def table_of_searches(records: list[Record]) -> str:
    """Markdown: what was dropped, and the KL."""
    lines = [
        "| context | sequences | target | weights | cache | attentions dropped | MLPs dropped | KL | KL of uniform |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        sizes = (record["target"], record["parts"]["weights"], record["parts"]["cache"])
        cells = [*(f"{size / 1e6:.1f}" for size in sizes), record["attentions_dropped"], record["mlps_dropped"]]
        kls = f"{record['kl']:.3f} | {record['kl_uniform']:.3f}"
        lines.append(f"| {record['context']} | {record['batch']} | {' | '.join(map(str, cells))} | {kls} |")
    return "\n".join(lines)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    results = {"files": files(), "searches": searches(), "vllm": caches()}
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    log.info(
        "%s\n\n%s\n\n%s", table_of_files(results["files"]), table_of_searches(results["searches"]), results["vllm"]
    )


if __name__ == "__main__":
    main()
