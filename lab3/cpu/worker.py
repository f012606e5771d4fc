"""The engine process that api_server starts: forked where that is safe, else a fresh interpreter without the device."""

from __future__ import annotations

import contextlib
import gc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

_LONGEST_WAIT = 1000  # milliseconds between two looks of an idle engine


def engine_process(shared_dict: Any, condition: Any, *args: Any, **kwargs: Any) -> None:
    """LMDeploy's `ZMQMPEngine._mp_proc`, with the CPU as the device. Named by this module, so that spawn finds it."""
    from lmdeploy.pytorch.engine.mp_engine.zmq_engine import ZMQMPEngine

    from lab3.cpu.patches import install, original

    install()
    original(ZMQMPEngine, "_mp_proc")(shared_dict, _LastWord(condition), *args, **kwargs)


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


class Multiprocessing:
    """The module `torch.multiprocessing` as LMDeploy sees it, whose "spawn" is a fork where that is safe.

    A forked engine has imported everything already: it starts 4 seconds sooner. A fork keeps nothing but the thread
    that forks, and what others held or waited for stays so for ever; so it is done from a process of one thread only.
    """

    def __init__(self, multiprocessing: Any) -> None:
        self._multiprocessing = multiprocessing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._multiprocessing, name)

    def get_context(self, method: str) -> Any:
        if method == "spawn" and _has_one_thread():
            # What was imported is no garbage: looking for it would take long and copy each of its pages after the fork.
            gc.freeze()
            method = "fork"
        return self._multiprocessing.get_context(method)


class Zmq:
    """The module `zmq` as LMDeploy's engine process sees it, whose poller is woken by messages and seldom by the clock.

    LMDeploy's waits 10 ms at most: an idle engine wakes a hundred times a second, 4% of a core for each server. All
    that it looks for then is whether it was told to stop, and what tells it wakes it: a message, or a cancelled task.
    """

    def __init__(self, zmq: Any) -> None:
        class Poller(zmq.asyncio.Poller):  # type: ignore[misc]
            def poll(self, timeout: float = -1) -> Any:
                return super().poll(max(timeout, _LONGEST_WAIT) if timeout > 0 else timeout)

        self._zmq = zmq
        self.asyncio = SimpleNamespace(**vars(zmq.asyncio) | {"Poller": Poller})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._zmq, name)


def _has_one_thread() -> bool:
    try:
        return len(list(Path("/proc/self/task").iterdir())) == 1
    except OSError:  # no Linux
        return False
