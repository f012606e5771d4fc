"""How OpenMP's threads, which torch computes with on a CPU, wait for each other: asleep.

By default they spin, which costs nothing on an idle machine and makes everything several times slower as soon as two
processes share the cores (measured in bench/RESULTS.md).
"""

from __future__ import annotations

import os

PATIENT = {"OMP_WAIT_POLICY": "PASSIVE"}


def wait_patiently() -> None:
    """From now on in this process, if torch is not imported yet, and its children; what the user has set stays."""
    for name, value in PATIENT.items():
        os.environ.setdefault(name, value)
