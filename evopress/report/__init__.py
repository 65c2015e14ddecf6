"""Reports: `report.html` of one run, and a comparison of several, from run directories alone and without the model."""

from evopress.report.page import write_comparison, write_report

__all__ = ["write_comparison", "write_report"]
