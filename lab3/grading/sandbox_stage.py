"""A folder outside for each run of the sandbox, and who the sandbox runs as; nothing of it is left afterwards."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab3.scratch import scratch

_PREFIX = "lab3-sandbox-"
# Above what systemd, containers and subordinate ids use; or, where those are not mapped, above what people have.
_SPARE_IDS = (range(1_900_000_000, 2_000_000_000), range(60_600, 61_000))
# util-linux: bind what an ordinary user could not reach (/root is nobody's business) to where it can, in a mount
# namespace that nobody else sees, and become that user.
_BECOME = """
id=$1; shift
while [ "$1" != -- ]; do mount --bind -- "$1" "$2"; shift 2; done
shift
exec setpriv --reuid "$id" --regid "$id" --clear-groups --inh-caps=-all -- "$@"
"""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """`files` is for the copy of the submission; `uid`: whom the sandbox runs as, None for the user that we are."""

    folder: Path
    files: Path
    uid: int | None

    def launcher(self, command: Sequence[str], *, unreachable: Sequence[Path]) -> list[str]:
        """The command, to be run as `uid`; `reachable(path)` of each unreachable folder is that folder for it."""
        if self.uid is None:
            return list(command)
        binds = [str(part) for path in unreachable for part in (path, self.reachable(path))]
        for place in binds[1::2]:
            Path(place).mkdir(exist_ok=True)
        return ["unshare", "--mount", "sh", "-euc", _BECOME, "sh", str(self.uid), *binds, "--", *command]

    def reachable(self, path: Path) -> Path:
        """Where the sandbox's user finds the folder."""
        return path if self.uid is None else self.folder / str(path).strip("/").replace("/", "+")


@contextmanager
def stage() -> Iterator[Stage]:
    """A new folder, which only we and the sandbox's user can look into, removed at the end."""
    uid = _spare_id() if os.geteuid() == 0 else None
    # Root's TMPDIR may be where nobody else gets.
    parent = Path(tempfile.gettempdir()) if uid is None else Path("/tmp")
    with scratch(_PREFIX, parent) as folder:
        files = folder / "files"
        files.mkdir()
        files.chmod(0o755)
        if uid is not None:
            os.chown(folder, 0, uid)
            folder.chmod(0o710)
        yield Stage(folder=folder, files=files, uid=uid)


def _spare_id() -> int | None:
    """A user and group id that nobody has, another one each time; None if this machine (a container) maps none."""
    for ids in _SPARE_IDS:
        if all(_maps(file, ids) for file in ("/proc/self/uid_map", "/proc/self/gid_map")):
            return random.choice(ids)
    return None


def _maps(file: str, ids: range) -> bool:
    rows = [[int(part) for part in line.split()] for line in Path(file).read_text().splitlines()]
    return any(first <= ids.start and ids.stop <= first + count for first, _, count in rows)
