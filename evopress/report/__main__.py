"""`python -m evopress.report DIR...`: the report of every run, and a comparison where there are several."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from evopress.report.collect import find_runs
from evopress.report.page import write_comparison, write_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 where a folder holds no run."""
    parser = argparse.ArgumentParser(prog="python -m evopress.report", description=__doc__)
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="run directory, or a folder with some below"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="where the comparison goes; else DIR/comparison.html, or ./comparison.html for several DIR",
    )
    options = parser.parse_args(arguments)
    runs = list(dict.fromkeys(run for folder in options.folders for run in find_runs(folder)))
    empty = [folder for folder in options.folders if not find_runs(folder)]
    if empty:
        print(
            f"{empty[0]} holds no run: give a folder with .hydra or results.json in it, or above such", file=sys.stderr
        )
        return 2
    for run in runs:
        print(write_report(run))
    if len(runs) > 1:
        beside = options.folders[0] if len(options.folders) == 1 else Path()
        print(write_comparison(runs, options.output or beside / "comparison.html"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
