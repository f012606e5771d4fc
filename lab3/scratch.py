"""Folders for a while: removed at the end, and by the next one's maker if their own was killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_YOUNG_S = 60.0  # it may not be locked yet


@contextmanager
def scratch(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """A new folder in `parent` (by default where temporary files go), which only this user may look into.

    First those of the same prefix that killed processes left are removed. Raises OSError if none can be made.
    """
    parent = parent or Path(tempfile.gettempdir())
    _sweep(parent, prefix)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # for _sweep: the kernel ends it with us
        yield folder
    finally:
        os.close(lock)
        shutil.rmtree(folder)


def _sweep(parent: Path, prefix: str) -> None:
    """Remove folders of ours that are not new and that nobody holds."""
    for folder in parent.glob(f"{prefix}*"):
        with suppress(OSError):
            status = folder.lstat()
            if status.st_uid != os.geteuid() or time.time() - status.st_mtime < _YOUNG_S:
                continue
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(fd)
