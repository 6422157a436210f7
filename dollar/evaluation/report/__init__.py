"""An evaluation to look at: a page with moving samples and curves, and a table for a terminal."""

from typing import TYPE_CHECKING

from dollar.lazy import lazily

if TYPE_CHECKING:
    from dollar.evaluation.report.curves import curve
    from dollar.evaluation.report.page import SampleRow, write_report
    from dollar.evaluation.report.table import format_table
else:
    __getattr__, __dir__ = lazily(__name__)

__all__ = [
    "SampleRow",
    "curve",
    "format_table",
    "write_report",
]
