"""Artifacts of an experiment -> one page that opens offline, and the same as JSON.

Reads the files of earlier stages and nothing else, so that a report can be rebuilt anywhere.
`stage` reads (`artifacts`) and builds one JSON document from `verdict`, `tables`, `distributions`
and `audit`; `page` and `figures` draw that document and compute nothing new. How arms, metrics
and numbers are written is decided in `words`, what they mean in `definitions`.
"""

from atlantis.report.stage import ReportFiles, ReportInputs, build, run
from atlantis.report.tables import terminal_table

__all__ = ["ReportFiles", "ReportInputs", "build", "run", "terminal_table"]
