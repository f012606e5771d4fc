"""Acceptance tests and reference implementation of the LMDeploy quantization lab."""

__version__ = "0.1.0"
