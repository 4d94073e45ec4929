"""Report of a run: one page of HTML with its results and its trajectories, as a file or served while the run goes."""

from r3agent.report.page import Written, write_report
from r3agent.report.server import ReportServer

__all__ = ["ReportServer", "Written", "write_report"]
