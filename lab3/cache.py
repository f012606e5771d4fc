"""Where lab3 keeps what it makes, and how a folder there is made once, however many processes want it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from lab3.errors import InfraError
from lab3.progress import Progress

_LOCK_TIMEOUT_S = 900


def cache_root() -> Path:
    """Where lab3 keeps what it makes: `$LAB3_CACHE`, or the user's cache folder."""
    if chosen := os.environ.get("LAB3_CACHE"):
        return Path(chosen).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("lab3")


def made_once(target: Path, make: Callable[[Path], object], *, what: str, lock: Path, progress: Progress) -> Path:
    """The folder `target`, made by `make` unless it is there. `make` lets it appear by one rename, under `lock`.

    Raises InfraError when another process does not finish it in 15 minutes, or the cache cannot be written.
    """
    from filelock import FileLock, Timeout

    # It appears by one rename, so if it is there it is whole, and no lock is needed to use it.
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(lock)
        try:
            taken = held.acquire(timeout=0)
        except Timeout:
            progress(f"waiting for another process that prepares {what}")
            taken = held.acquire(timeout=_LOCK_TIMEOUT_S)
        with taken:
            if not target.is_dir():
                make(target)
    except Timeout as error:
        raise InfraError(
            f"{what} was not ready after {_LOCK_TIMEOUT_S} s",
            why=f"another process holds {lock}",
            todo="wait for it to finish, or end it, and run again",
        ) from error
    except OSError as error:
        raise InfraError(
            f"cannot keep {what} in {target.parent}: {error}",
            why="the disk is full or the folder cannot be written",
            todo="make room, or set LAB3_CACHE to another folder",
        ) from error
    return target
