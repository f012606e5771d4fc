"""The pictures of a report: found beside it however they are linked, or taken out of it, and looked at before use."""

from __future__ import annotations

import base64
import binascii
import copy
import hashlib
import os
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from lab3.cache import cache_root
from lab3.errors import InfraError, UsageError
from lab3.grading.files import list_files
from lab3.grading.problems import shown
from lab3.reports.model import Picture
from lab3.reports.reading_files import read_bytes
from lab3.reports.reading_images import SUFFIXES, kind_of

MOST_PICTURES = 300  # of a report
MOST_PICTURE_BYTES = 40 << 20
MOST_BYTES = 600 << 20  # of all together
AMBIGUOUS = "ambiguous: several files of the folder have this name"
_MOST_TARGET = 2000  # characters
_REPORTS = frozenset({".md", ".markdown", ".ipynb", ".docx", ".pdf", ".html", ".htm"})


def is_picture_name(target: str) -> bool:
    """Whether a link leads to a picture, by its name."""
    return Path(_path_of(target).lower()).suffix in SUFFIXES


@dataclass
class _Taken:
    """What a report, in all of its files, has taken so far."""

    count: int = 0
    bytes: int = 0
    missing: int = 0
    known: dict[Path, tuple[str, str]] = field(default_factory=dict)  # its digest, or why it is none
    files: list[Path] | None = None
    fetched: dict[str, Picture] = field(default_factory=dict)


class Pictures:
    """Finds the pictures of the report `file`; nothing outside of the folder `root` is looked at."""

    def __init__(self, file: Path, *, root: Path, fetch: bool = False) -> None:
        self._file, self._root, self._fetch = file, root, fetch
        self._taken = _Taken()

    def beside(self, file: Path) -> Pictures:
        """The same for another file of the report."""
        other = copy.copy(self)
        other._file = file
        return other

    def problems(self) -> tuple[str, ...]:
        """What to know about all of them together."""
        taken = self._taken
        return (f"{taken.missing} of {taken.count} pictures are not at hand",) if taken.missing else ()

    def linked(self, target: str, alt: str = "") -> Picture:
        """The picture that `target` leads to: a path, a URL, or a data: URI that holds it."""
        target = target.strip().strip("<>").strip()
        return self._counted(lambda: self._of_target(target, alt), target, alt)

    def embedded(self, data: bytes, *, target: str, alt: str = "") -> Picture:
        """A picture that the report holds; it is kept in the cache by its content."""
        return self._counted(lambda: self._kept(data, target, alt), target, alt)

    def missing(self, target: str, *, why: str, alt: str = "") -> Picture:
        """A picture that is not at hand."""
        self._taken.count += 1
        self._taken.missing += 1
        return _without(target, alt, why)

    def _counted(self, make: Callable[[], Picture], target: str, alt: str) -> Picture:
        self._taken.count += 1
        if self._taken.count > MOST_PICTURES or self._taken.bytes > MOST_BYTES:
            picture = _without(target, alt, f"the report has more pictures than {MOST_PICTURES}, or too large ones")
        else:
            picture = make()
        self._taken.missing += picture.path is None
        return picture

    # --- what holds the picture in itself ----------------------------------------------------------------------------

    def _of_target(self, target: str, alt: str) -> Picture:
        if not target:
            return _without(target, alt, "the link is empty")
        if target[:5].lower() == "data:":
            return self._of_data_uri(target, alt)
        if len(target) > _MOST_TARGET or "\0" in target:
            return _without(target, alt, "the link is no path")
        if target.lower().startswith(("http://", "https://", "//")):
            return self._of_url(target, alt)
        if target.lower().startswith(("attachment:", "cid:", "blob:")):
            return _without(target, alt, "the picture was not saved with the report")
        return self._of_path(target, alt)

    def _of_data_uri(self, uri: str, alt: str) -> Picture:
        head, comma, body = uri.partition(",")
        name = shown(head, 80)
        if not comma:
            return _without(name, alt, "a data: URI without data")
        try:
            data = base64.b64decode(unquote(body)) if ";base64" in head.lower() else unquote_to_bytes(body)
        except (binascii.Error, ValueError) as error:
            return _without(name, alt, f"a data: URI that is broken: {error}")
        return self._kept(data, name, alt)

    def _kept(self, data: bytes, target: str, alt: str) -> Picture:
        if len(data) > MOST_PICTURE_BYTES:
            return _without(target, alt, f"it has more than {MOST_PICTURE_BYTES >> 20} MiB")
        kind = kind_of(data)
        if kind.why:
            return _without(target, alt, kind.why)
        digest = hashlib.sha256(data).hexdigest()
        self._taken.bytes += len(data)
        return Picture(target=target, alt=alt, path=keep(data, digest, kind.suffix), digest=digest)

    # --- what lies beside the report ---------------------------------------------------------------------------------

    def _of_path(self, target: str, alt: str) -> Picture:
        plain = target
        if plain.lower().startswith("file:"):
            plain = urlsplit(plain).path or plain[5:]
        spellings = dict.fromkeys(_spellings(plain))
        why = ""
        for spelling in spellings:
            for base in (self._file.parent, self._root):
                path = self._inside(base, spelling)
                if path is not None and path.is_file():
                    return self._at(path, target, alt)
            if _is_absolute(spelling):
                why = "it is a path of the machine that the report was written on"
            elif ".." in spelling.split("/"):
                why = "it lies outside of the report's folder"
        return self._by_name(next(reversed(spellings)), target, alt, why or "there is no such file")

    def _of_url(self, url: str, alt: str) -> Picture:
        try:
            path = _path_of(url)
        except ValueError:
            return _without(url, alt, "the link is no URL")
        found = self._by_name(
            path, url, alt, "it is linked by URL, there is no copy in the folder, and lab3 fetches nothing"
        )
        if found.path is not None or not self._fetch or found.why == AMBIGUOUS:
            return found
        if url not in self._taken.fetched:
            self._taken.fetched[url] = self._fetched(url, alt)
        return self._taken.fetched[url]

    def _fetched(self, url: str, alt: str) -> Picture:
        from lab3.reports.reading_fetch import NotFetched, fetch_picture

        try:
            data = fetch_picture(url, most_bytes=MOST_PICTURE_BYTES)
        except NotFetched as error:
            return _without(url, alt, f"it could not be fetched: {error}")
        return self._kept(data, url, alt)

    def _by_name(self, path: str, target: str, alt: str, why: str) -> Picture:
        """By its name, wherever it lies in the folder: that whose path ends most alike, none if several do."""
        parts = [part for part in path.split("/") if part not in ("", ".", "..")]
        if not parts:
            return _without(target, alt, why)
        alike = [file for file in self._files() if _same(file.name, parts[-1])]
        if not alike:
            alike = [
                file for file in self._files() if _same(file.stem, parts[-1]) or _same(file.stem, Path(parts[-1]).stem)
            ]
        if not alike:
            return _without(target, alt, why)
        scores = {file: _common_tail(file, parts) for file in alike}
        best = [file for file in alike if scores[file] == max(scores.values())]
        exact = [file for file in best if file.name == parts[-1]]
        best = exact or best
        if len(best) > 1 and not self._all_the_same(best):
            return _without(target, alt, AMBIGUOUS)
        return self._at(best[0], target, alt)

    def _all_the_same(self, files: list[Path]) -> bool:
        digests = {self._look(file)[0] for file in files[:20]}
        return len(digests) == 1 and "" not in digests and len(files) <= 20

    def _at(self, path: Path, target: str, alt: str) -> Picture:
        digest, why = self._look(path)
        return Picture(target=target, alt=alt, path=path, digest=digest) if digest else _without(target, alt, why)

    def _look(self, path: Path) -> tuple[str, str]:
        """(digest, "") of a picture that can be used, or ("", why not)."""
        if path not in self._taken.known:
            try:
                data = read_bytes(path, most_bytes=MOST_PICTURE_BYTES)
            except UsageError as error:
                self._taken.known[path] = "", error.what
                return self._taken.known[path]
            self._taken.bytes += len(data)
            why = kind_of(data).why
            self._taken.known[path] = ("" if why else hashlib.sha256(data).hexdigest()), why
        return self._taken.known[path]

    def _inside(self, base: Path, name: str) -> Path | None:
        """The real path, if it lies in the folder and no link leads out of it."""
        if not name or name.startswith("/") or len(os.fsencode(name)) > 4000:
            return None
        try:
            real = (base / name).resolve()
        except (OSError, ValueError, RuntimeError):
            return None
        return real if real.is_relative_to(self._root) else None

    def _files(self) -> list[Path]:
        """The pictures of the folder. What lies beside another report in a folder of its own is that report's."""
        if self._taken.files is None:
            files = list_files(self._root).files
            above = set(self._file.parents)
            theirs = {file.parent for file in files if file.suffix.lower() in _REPORTS and file.parent not in above}
            self._taken.files = [
                file
                for file in files
                if file.suffix.lower() in SUFFIXES and not any(parent in theirs for parent in file.parents)
            ]
        return self._taken.files


def keep(data: bytes, digest: str, suffix: str) -> Path:
    """The file of the cache with this content; raises InfraError if it cannot be written."""
    path = cache_root() / "reports" / "pictures" / digest[:2] / f"{digest}{suffix}"
    try:
        if path.is_file() and path.stat().st_size == len(data):
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(data)
        Path(file.name).replace(path)
    except OSError as error:
        raise InfraError(
            f"cannot keep a picture in {path.parent}: {error.strerror}",
            why="the disk is full or the folder cannot be written",
            todo="make room, or set LAB3_CACHE to another folder",
        ) from error
    return path


def _without(target: str, alt: str, why: str) -> Picture:
    return Picture(target=shown(target, 400), alt=alt, why=why)


def _path_of(target: str) -> str:
    """The path of a URL or of a link, without its query, as it is written on a disk."""
    if target.lower().startswith(("http://", "https://", "//")):
        return unquote(urlsplit(target).path)
    return unquote(target.split("?")[0].split("#")[0]).replace("\\", "/")


def _is_absolute(path: str) -> bool:
    return path.startswith(("/", "\\", "~")) or (path[1:2] == ":" and path[:1].isalpha())


def _spellings(target: str) -> Iterator[str]:
    """How the path may be meant, the likeliest first."""
    plain = target.replace("\\", "/")
    yield target
    yield unquote(target)
    yield plain
    yield unquote(plain)
    yield unicodedata.normalize("NFC", unquote(plain))
    yield unicodedata.normalize("NFD", unquote(plain))
    yield unquote(plain.split("?")[0].split("#")[0])


def _same(name: str, other: str) -> bool:
    return name == other or _folded(name) == _folded(other)


def _folded(name: str) -> str:
    """Names that an upload or another system makes of each other: case, spaces, underscores."""
    plain = unicodedata.normalize("NFKC", name).casefold().replace("+", " ").replace("%20", " ").replace("_", " ")
    return " ".join(plain.split())


def _common_tail(file: Path, parts: list[str]) -> int:
    """How many names of folders, from the last on, are the same."""
    count = 0
    for one, other in zip(reversed(file.parts[:-1]), reversed(parts[:-1]), strict=False):
        if not _same(one, other):
            break
        count += 1
    return count
