"""Reports of single runs and comparisons of several, made from their folders alone, without the model.

May import runtime, search and evaluation.
"""

from evopress.report.comparison_page import write_comparison
from evopress.report.run_page import write_report

__all__ = ["write_comparison", "write_report"]
