"""Prints the table of the README and draws its plot, from `results.json`.

python experiments/search/show.py
"""

import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev

from matplotlib.figure import Figure

HERE = Path(__file__).parent
TASKS = ("3 bit", "2.5 bit", "60 % sparsity", "25 % depth")
COLOURS = {
    "guided": "tab:blue",
    "generations": "tab:cyan",
    "evolution": "tab:orange",
    "super_fast": "tab:red",
    "random": "grey",
    "additive": "tab:green",
    "greedy": "tab:purple",
}

Record = dict
"""One of `results.json`."""


def name_of(record: Record) -> str:
    """The search that the command picked; `generations` is guided with those instead of refinements."""
    picked = [str(o).removeprefix("search=") for o in record["overrides"] if str(o).startswith("search=")]
    if "search.generations=6" in record["overrides"]:
        return "generations"
    return {"dp": "additive", "swaps": "guided"}.get(picked[0], picked[0])


def grouped(records: list[Record]) -> dict[tuple[str, str, int], list[Record]]:
    """Records of different seeds at about the same cost (within a fifth), by task, search and the lowest cost."""
    groups: dict[tuple[str, str, int], list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda r: float(r["token_equivalents"])):
        cost, kind = float(record["token_equivalents"]), (str(record["task"]), name_of(record))
        near = [
            key
            for key, members in groups.items()
            if key[:2] == kind and cost < 1.2 * key[2] and record["seed"] not in [m["seed"] for m in members]
        ]
        groups[near[-1] if near else (*kind, round(cost))].append(record)
    return groups


def table(records: list[Record]) -> str:
    lines = [
        "| task | search | seeds | token equivalents | seconds | KL, unseen | KL, search tokens |",
        "|---|---|---|---|---|---|---|",
    ]
    groups = grouped(records)
    for task in TASKS:
        for (of_task, name, _), members in groups.items():
            if of_task != task:
                continue
            kl = [float(r["kl_unseen"]) for r in members]
            spread = f" ± {stdev(kl):.3f}" if len(kl) > 1 else ""
            search_kl = [float(r["kl_search"]) for r in members if r["kl_search"] is not None]
            tokens, seconds = (fmean(float(r[key]) for r in members) for key in ("token_equivalents", "seconds"))
            searched = f"{fmean(search_kl):.3f}" if search_kl else ""
            cells = (task, name, len(kl), f"{tokens:,.0f}", f"{seconds:.0f}", f"{fmean(kl):.3f}{spread}", searched)
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def plot(records: list[Record]) -> Figure:
    figure, labelled = Figure(figsize=(10, 6.8), layout="constrained"), {}
    for axes, task in zip(figure.subplots(2, 2).flat, TASKS, strict=True):
        for name, colour in COLOURS.items():
            runs = [r for r in records if r["task"] == task and name_of(r) == name]
            if not runs:
                continue
            tokens, kl = ([record[key] for record in runs] for key in ("token_equivalents", "kl_unseen"))
            (labelled[name],) = axes.plot(tokens, kl, "o", color=colour, ms=5, alpha=0.8)
        axes.set_title(task)
        axes.set_xscale("log")
        axes.set_xlim(2.5e3, 1.4e6)
        axes.set_xlabel("token equivalents")
        axes.set_ylabel("KL on unseen tokens, nats")
        axes.grid(lw=0.4)
    figure.legend(labelled.values(), labelled, loc="outside lower center", ncols=len(labelled), fontsize=9)
    return figure


def main() -> None:
    records = json.loads((HERE / "results.json").read_text())
    print(table(records))
    plot(records).savefig(HERE / "kl_by_tokens.png", dpi=110)


if __name__ == "__main__":
    main()
