"""An LMDeploy device that is the CPU: LMDeploy's own PyTorch engine and api_server, with no GPU in the machine.

`install()` makes the change in this process, `uninstall()` takes it back, and `python -m lab3.cpu lmdeploy …`
behaves as `lmdeploy …` with it installed. The engine, scheduler, paged KV cache, server, chat templates, tool parsers
and guided decoding are LMDeploy's; the operators (`backend`), the device (`device`) and a list of changes (`patches`)
are ours.

`LAB3_CPU_MEMORY` (bytes, or like `2GiB`) plays the card's total memory. Default: a quarter of the RAM.
"""

from __future__ import annotations

from lab3.cpu.patches import install, installed, uninstall

__all__ = ["install", "installed", "uninstall"]
