"""Reports of a run: an HTML page and tables for the terminal. Only reads files; does not import torch."""

from isogloss.report.page import write_report
from isogloss.report.table import headline, summary_table

__all__ = ["headline", "summary_table", "write_report"]
