"""What a run shows: one page for people, one table for the terminal. Reads files only; loads no torch."""

from isogloss.report.page import write_report
from isogloss.report.table import headline, summary_table

__all__ = ["headline", "summary_table", "write_report"]
