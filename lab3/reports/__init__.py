"""Grading of reports: what is written and pictured in them, what it evidences, and whether it can be true."""
