"""Runs exported checkpoints in inference engines, each in its own Python environment, and measures them there.

May import `runtime`, `models`, `space`, `evaluation` and `export`.
"""

from evopress.engines.checks import check_engine
from evopress.engines.comparison import EngineComparison
from evopress.engines.wording import as_lines, as_section

__all__ = ["EngineComparison", "as_lines", "as_section", "check_engine"]
