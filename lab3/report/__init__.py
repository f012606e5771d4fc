"""Reports: what was judged, for machines and for people."""

from lab3.report.json_report import SCHEMA, build_report, write_report

__all__ = ["SCHEMA", "build_report", "write_report"]
