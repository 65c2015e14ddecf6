"""`python -m evopress.report DIR...`: writes the report of every run, and a comparison if there are several."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from evopress.report.comparison_page import write_comparison
from evopress.report.run_folders import find_runs
from evopress.report.run_page import write_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pages. Returns the exit code: 0, or 2 if a folder holds no run."""
    options = _parse(arguments)
    runs = list(dict.fromkeys(run for folder in options.folders for run in find_runs(folder)))
    empty = [folder for folder in options.folders if not find_runs(folder)]
    if empty:
        message = f"{empty[0]} holds no run: give a folder that contains .hydra or results.json, or a folder above it"
        print(message, file=sys.stderr)
        return 2
    for run in runs:
        print(write_report(run))
    if len(runs) > 1:
        parent = options.folders[0] if len(options.folders) == 1 else Path()
        print(write_comparison(runs, options.output or parent / "comparison.html"))
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m evopress.report", description=__doc__)
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="run directory, or a folder that contains some"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="where to write the comparison; default: DIR/comparison.html, or ./comparison.html for several DIR",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
