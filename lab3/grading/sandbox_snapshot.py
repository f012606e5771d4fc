"""What the sandbox shows of a submission: a copy of its folder, of files, folders and symbolic links only.

A copy, because the submission may belong to anybody and the sandbox runs as nobody; because what is not copied
(devices, pipes, sockets) can do no harm; and because no script can reach what it was made from. Model weights are not
worth it: a large file is there with its name and size, and cannot be opened.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

MOST_FILE_BYTES = 32 << 20
MOST_BYTES = 256 << 20  # of all files together
MOST_ENTRIES = 5_000
MOST_DEPTH = 32
_MOST_TOLD = 20
_OURS = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EROFS}
_SPECIAL = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFBLK: "a device", stat.S_IFCHR: "a device"}


def take(folder: Path, into: Path) -> tuple[str, ...]:
    """Copy the folder's contents into the empty folder `into`, for all to read; tell what was left out and why."""
    copy = _Copy()
    root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    copy.folder(root, into, name="", depth=0)
    told = copy.left_out[:_MOST_TOLD]
    if len(copy.left_out) > len(told):
        told.append(f"and {len(copy.left_out) - len(told)} more")
    return tuple(told)


@dataclass
class _Copy:
    left_out: list[str] = field(default_factory=list)
    entries: int = 0
    copied_bytes: int = 0

    def folder(self, source: int, into: Path, *, name: str, depth: int) -> None:
        """`source` is a descriptor, which this closes: paths can be changed while they are walked."""
        try:
            for entry in _entries(source):
                here = f"{name}{entry}"
                self.entries += 1
                if self.entries > MOST_ENTRIES:
                    self.left_out.append(f"{here}: there are more than {MOST_ENTRIES} files")
                    return
                try:
                    why = self._entry(source, entry, into / entry, name=here, depth=depth)
                except OSError as error:
                    if error.errno in _OURS:
                        raise
                    why = error.strerror or str(error)
                if why:
                    self.left_out.append(f"{here}: {why}")
        finally:
            os.close(source)

    def _entry(self, source: int, entry: str, target: Path, *, name: str, depth: int) -> str:
        """Copy it, or say why not."""
        kind = stat.S_IFMT(os.stat(entry, dir_fd=source, follow_symlinks=False).st_mode)
        if kind == stat.S_IFLNK:
            target.symlink_to(os.readlink(entry, dir_fd=source))
            return ""
        if kind not in (stat.S_IFDIR, stat.S_IFREG):
            return _SPECIAL.get(kind, "no file")
        if kind == stat.S_IFDIR and depth >= MOST_DEPTH:
            return f"folders are nested more than {MOST_DEPTH} deep"
        # It may have become something else since: O_NOFOLLOW for a link, O_NONBLOCK for a pipe, fstat for the rest.
        opened = os.open(entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=source)
        if kind == stat.S_IFDIR:
            target.mkdir()
            target.chmod(0o755)
            self.folder(opened, target, name=f"{name}/", depth=depth + 1)
            return ""
        with os.fdopen(opened, "rb") as file:
            status = os.fstat(opened)
            if not stat.S_ISREG(status.st_mode):
                return "no file"
            size = status.st_size
            if size > MOST_FILE_BYTES or self.copied_bytes + size > MOST_BYTES:
                _placeholder(target, size)
                return f"too large to be shown ({size >> 20} MiB)"
            self.copied_bytes += size
            with target.open("xb") as copy:
                shutil.copyfileobj(file, copy)
        target.chmod(0o755 if status.st_mode & 0o111 else 0o644)
        return ""


def _entries(folder: int) -> Iterator[str]:
    """Names in their order, and no more than can be used."""
    names = []
    with os.scandir(folder) as scan:
        for entry in scan:
            names.append(entry.name)
            if len(names) > MOST_ENTRIES:
                break
    yield from sorted(names)


def _placeholder(target: Path, size: int) -> None:
    target.touch(mode=0)
    with suppress(OSError):  # the size is a courtesy
        os.truncate(target, size)
