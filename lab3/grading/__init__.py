"""Grading of live submissions: what students wrote is run in a sandbox, and the wire is watched."""
