"""`python -m evopress.inspection PATH`: what a run, database, profile or checkpoint is, and whether it is whole.

Exit code 0: everything that is there is sound, though a run or a database may be unfinished, which is said. 1: damaged.
2: the path is missing or something else. Only JSON, YAML and safetensors are read, and nothing is loaded into a model.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from evopress.inspection import Unknown, inspect


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints what was found; returns the exit code."""
    description, _, codes = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(prog="python -m evopress.inspection", description=description, epilog=codes)
    parser.add_argument("path", type=Path, metavar="PATH", help="file or folder")
    path = parser.parse_args(arguments).path
    try:
        findings = inspect(path)
    except (Unknown, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print("\n\n".join(map(str, findings)))
    return int(any(finding.damages for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
