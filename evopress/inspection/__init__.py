"""Describes a run, database, profile or checkpoint, and checks whether it is intact. Loads no model, runs no code.

May import runtime, space, database and report.
"""

from evopress.inspection.finding import Finding, UnknownFileError
from evopress.inspection.paths import inspect_path

__all__ = ["Finding", "UnknownFileError", "inspect_path"]
