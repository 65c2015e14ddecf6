"""`python -m evopress.inspection PATH`: describes a run, database, profile or checkpoint, and checks that it is intact.

Exit code 0: nothing is damaged. A run or a database may be unfinished; the output says so. 1: something is damaged.
2: the path does not exist or is something else. Reads only JSON, YAML, text and safetensors; loads no model.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from evopress.inspection.finding import UnknownFileError
from evopress.inspection.paths import inspect_path


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the findings, and return the exit code."""
    description, _, exit_codes = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(prog="python -m evopress.inspection", description=description, epilog=exit_codes)
    parser.add_argument("path", type=Path, metavar="PATH", help="file or folder")
    path = parser.parse_args(arguments).path
    try:
        findings = inspect_path(path)
    except (UnknownFileError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print("\n\n".join(map(str, findings)))
    return int(any(finding.defects for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
