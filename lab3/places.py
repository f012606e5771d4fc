"""Places that the user names for results, and words for what the system refuses."""

from __future__ import annotations

import errno
import tempfile
from contextlib import suppress
from pathlib import Path

from lab3.errors import InfraError, UsageError

_FULL = (errno.ENOSPC, errno.EDQUOT)


def make_folder(folder: Path, *, option: str = "--out") -> None:
    """Make a folder, and those above it. Raises what `check_place` does."""
    check_place(folder, option=option)
    folder.mkdir(parents=True, exist_ok=True)


def check_place(folder: Path, *, option: str = "--out") -> None:
    """Raise UsageError for a folder that cannot be made or written into, InfraError if the disk is full or broken.

    It is tried out: permissions say little to root, or of /proc. Nothing stays of it.
    """
    _check(folder, folder, option)


def check_beside(path: Path, *, option: str = "--out") -> None:
    """The same for what is made beside `path`, and renamed to it."""
    _check(path, path.parent, option)


def refused(error: OSError) -> InfraError:
    """The machine's trouble, in words."""
    said = error.strerror or str(error) or type(error).__name__
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in _FULL:
        return InfraError(
            f"nothing more can be written: {said}{where}",
            why="the disk is full, or your share of it",
            todo="free some space (`df -h`), or choose another disk: --out, and TMPDIR for what is temporary",
            kind="disk_full",
        )
    return InfraError(
        f"the system refused a file or a connection: {said}{where}",
        why="a disk or the network fails, or something was removed or locked meanwhile",
        todo="look after it, or choose another place (--out, TMPDIR), then type the same command again",
    )


def _check(path: Path, folder: Path, option: str) -> None:
    place = path
    try:
        _is_there(path)  # its name may be too long
        place = next(each for each in (folder.absolute(), *folder.absolute().parents) if _is_there(each))
        Path(tempfile.mkdtemp(prefix=".lab3-", dir=place)).rmdir()
    except OSError as error:
        if error.errno in (*_FULL, errno.EIO):
            raise refused(error) from error
        raise UsageError(
            f"{path} cannot be written",
            why=f"nothing can be made in {place}: {error.strerror or error}",
            todo=f"choose another place with {option}",
        ) from error


def _is_there(path: Path) -> bool:
    """As a link, too. Raises OSError for what can never be."""
    with suppress(FileNotFoundError, NotADirectoryError):
        path.lstat()
        return True
    return False
