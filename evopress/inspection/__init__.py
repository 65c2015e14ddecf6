"""Says what a run, database, profile or checkpoint is, and whether it is intact. Loads no model and runs no code.

May import runtime, space, database and report.
"""

from evopress.inspection.finding import Finding, UnknownFileError
from evopress.inspection.paths import inspect_path

__all__ = ["Finding", "UnknownFileError", "inspect_path"]
