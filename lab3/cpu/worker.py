"""The engine process that api_server spawns: a fresh interpreter, where the device has to be installed again."""

from __future__ import annotations

import contextlib
from typing import Any


def engine_process(shared_dict: Any, condition: Any, *args: Any, **kwargs: Any) -> None:
    """LMDeploy's `ZMQMPEngine._mp_proc`, with the CPU as the device. Named by this module, so that spawn finds it."""
    from lmdeploy.pytorch.engine.mp_engine.zmq_engine import ZMQMPEngine

    original = ZMQMPEngine._mp_proc
    from lab3.cpu.patches import install

    install()
    original(shared_dict, _LastWord(condition), *args, **kwargs)


class _LastWord:
    """The parent's condition, whose parent may be gone when it is released.

    The engine tells its port under this condition. LMDeploy's parent may then end the manager that holds it before the
    manager has confirmed the release, and the engine dies of EOFError (seen on two busy cores, LMDeploy 0.18).
    """

    def __init__(self, condition: Any) -> None:
        self._condition = condition

    def __enter__(self) -> Any:
        return self._condition.__enter__()

    def __exit__(self, *error: Any) -> None:
        with contextlib.suppress(EOFError, ConnectionError):
            self._condition.__exit__(*error)

    def notify(self, n: int = 1) -> None:
        self._condition.notify(n)
