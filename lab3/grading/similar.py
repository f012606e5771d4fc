"""Which submissions of a batch are alike beyond what many of them share. Likeness is measured; guilt is not.

A script is its syntax tree without the names that its author chose, texts and comments, and with its numbers: pieces of
_PIECE nodes in a row, as hashes. Two submissions are as alike as the share of their pieces that both have (Jaccard).
"""

from __future__ import annotations

import ast
import hashlib
import keyword
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lab3.errors import UsageError
from lab3.grading.documents import notebook_script
from lab3.grading.files import PICTURED_BYTES, list_files, read_text, relative
from lab3.grading.problems import shown
from lab3.grading.python_source import parse

Hashes = npt.NDArray[np.uint64]

SHARED_BY = 1 / 3  # of a batch: what more have comes from a common source, such as the tutorial
SMALLEST_BATCH = 6  # in which that can be told
LEAST_PIECES = 30  # beyond the common source; fewer are alike by chance
LEAST_BYTES = 512  # of a file; shorter ones are equal by chance
MOST_PAIRS = 2000
MOST_KEPT = 2048  # pieces of a submission; of a longer one about every second, fourth, … as their hashes come
MOST_FILES = 100
MOST_CHARACTERS = 256 << 10  # of a submission's scripts that are parsed; longer ones are compared as files alone
_PIECE = 7
_MOST_NODES = 200_000
_BLOCK = 256  # submissions compared with all others at once: it bounds memory
_READ = frozenset(
    {".py", ".ipynb", ".md", ".markdown", ".txt", ".sh", ".bash", ".bat", ".ps1", ".pdf", ".doc", ".docx", ".html"}
)
# A text in quotes, a number, a word, or a sign, of what is no Python that parses. Nothing in it looks twice.
_TOKEN = re.compile(r"\"[^\"\n]*\"?|'[^'\n]*'?|#[^\n]*|\d[\w.]*|[^\W\d]\w*|[^\s\w]")


@dataclass(frozen=True, kw_only=True)
class FilePrint:
    """A file's digest, and for a script its pieces, as sorted hashes."""

    path: str
    digest: str  # "" for what is too short or too long to tell anything
    pieces: Hashes


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What of a submission is compared. Of its pieces, those were kept whose hashes have `level` low bits of 0."""

    name: str
    files: tuple[FilePrint, ...]
    level: int = 0


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two submissions that are alike.

    `similarity` is of their scripts' pieces beyond the common source, None if too few are left; `measured_on` is how
    many different ones both together have, `common` which share of all theirs was left out as common. `equal_files`
    have the same content; `alike` are scripts that are nearly the same: (path in first, in second, similarity).
    """

    first: str
    second: str
    similarity: float | None
    measured_on: int
    common: float
    equal_files: tuple[tuple[str, str], ...]
    alike: tuple[tuple[str, str, float], ...]
    text: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return asdict(self)


def fingerprint(folder: Path, *, name: str | None = None, scripts: Sequence[Path] | None = None) -> Fingerprint:
    """The folder's fingerprint, whatever is in it; nothing is run. `scripts`: these alone are compared as scripts.

    A folder that cannot be read has nothing that is like another's: one such must not keep a batch from its end.
    """
    files = []
    budget = MOST_CHARACTERS
    for path in [each for each in _listed_files(folder) if each.suffix.lower() in _READ][:MOST_FILES]:
        text = _text(path)
        code = _code(path, text) if scripts is None or path in scripts else ""
        pieces = _hashes(_pieces(code) if len(code) <= budget else ())
        budget -= min(len(code), budget)
        files.append(FilePrint(path=relative(path, folder), digest=_digest(text), pieces=pieces))
    return _bounded(Fingerprint(name=name or shown(folder.resolve().name), files=tuple(files)))


def similar(fingerprints: Sequence[Fingerprint], *, threshold: float = 0.9) -> tuple[Pair, ...]:
    """The pairs that are alike, the most alike first; at most MOST_PAIRS.

    Alike are scripts of which `threshold` is the same, and submissions with a file of the same content. In a
    batch of SMALLEST_BATCH and more, what more than SHARED_BY of it have is left out before.
    """
    if len(names := [each.name for each in fingerprints]) != len(set(names)):
        raise UsageError("two submissions of one name", todo="pass fingerprints with names of their own")
    known = sorted(fingerprints, key=lambda each: each.name)
    return _Batch(known, threshold).pairs()


class _Batch:
    """Submissions by number. `_own` are their pieces beyond the common source, all together and script by script."""

    def __init__(self, fingerprints: Sequence[Fingerprint], threshold: float) -> None:
        self._prints, self._threshold = fingerprints, threshold
        self._levels = np.array([each.level for each in fingerprints], int)
        every = [_union(file.pieces for file in each.files) for each in fingerprints]
        self._sizes = [len(pieces) for pieces in every]
        self._common = self._shared(every, self._levels)
        self._own = [_without(pieces, self._common) for pieces in every]
        digests = [_union(_as_hash(file.digest) for file in each.files if file.digest) for each in fingerprints]
        common = self._shared(digests, np.zeros(len(digests), int))
        self._digests = [_without(each, common) for each in digests]

    def pairs(self) -> tuple[Pair, ...]:
        rates: dict[tuple[int, int], float] = {}
        for numbers, rate in self._alike():
            rates[numbers] = max(rate, rates.get(numbers, 0.0))
        equal = dict(self._equal())
        ranked = sorted(
            rates.keys() | equal.keys(), key=lambda numbers: (-rates.get(numbers, 0), -equal.get(numbers, 0), numbers)
        )
        return tuple(self._pair(i, j) for i, j in ranked[:MOST_PAIRS])

    def _shared(self, rows: Sequence[Hashes], levels: npt.NDArray[Any]) -> Hashes:
        """What more than SHARED_BY of those have that would show it: a long one shows only some of its pieces."""
        if len(rows) < SMALLEST_BATCH:
            return _union(())
        found, counts = np.unique(np.concatenate(rows), return_counts=True)
        lacking = np.zeros(len(found), int)
        for level in np.unique(levels[levels > 0]):
            lacking += np.where(found & _mask(level), np.count_nonzero(levels == level), 0)
        able = len(rows) - lacking
        common: Hashes = found[(counts > able * SHARED_BY) & (able >= SMALLEST_BATCH)]
        return common

    def _alike(self) -> Iterator[tuple[tuple[int, int], float]]:
        """Submissions whose scripts, all together or one by one, are as alike as the threshold asks."""
        rows, owners = list(self._own), list(range(len(self._own)))
        for number, each in enumerate(self._prints):
            scripts = [_without(file.pieces, self._common) for file in each.files]
            scripts = [pieces for pieces in scripts if len(pieces) >= LEAST_PIECES]
            rows += scripts if len(scripts) > 1 else []
            owners += [number] * (len(rows) - len(owners))
        owner, levels = np.array(owners, int), self._levels
        every = range(int(levels.max(initial=0)) + 1)
        sizes = np.array([[len(_sampled(row, level)) for level in every] for row in rows]).reshape(-1, len(every))
        for i, j, both in _overlaps(rows):
            level = np.maximum(levels[owner[i]], levels[owner[j]])
            first, second = sizes[i, level], sizes[j, level]
            rate = both / (first + second - both)
            enough = (np.minimum(first, second) >= LEAST_PIECES) & (rate >= self._threshold) & (owner[i] != owner[j])
            for one, other, found in zip(
                owner[i[enough]].tolist(), owner[j[enough]].tolist(), rate[enough].tolist(), strict=True
            ):
                yield (min(one, other), max(one, other)), found

    def _equal(self) -> Iterator[tuple[tuple[int, int], int]]:
        for i, j, both in _overlaps(self._digests):
            yield from zip(zip(i.tolist(), j.tolist(), strict=True), both.tolist(), strict=True)

    def _pair(self, i: int, j: int) -> Pair:
        level = max(self._prints[i].level, self._prints[j].level)
        one, other = (_sampled(self._own[number], level) for number in (i, j))
        total = self._sizes[i] + self._sizes[j]
        pair = Pair(
            first=self._prints[i].name,
            second=self._prints[j].name,
            similarity=_jaccard(one, other) if min(len(one), len(other)) >= LEAST_PIECES else None,
            measured_on=len(np.union1d(one, other)),
            common=round(1 - (len(self._own[i]) + len(self._own[j])) / total, 3) if total else 0.0,
            equal_files=tuple(self._files_equal(i, j)),
            alike=tuple(self._files_alike(i, j)),
            text="",
        )
        return replace(pair, text=_told(pair, sampled=bool(level), batch=len(self._prints)))

    def _files_equal(self, i: int, j: int) -> Iterator[tuple[str, str]]:
        beyond = set(self._digests[i].tolist()) & set(self._digests[j].tolist())
        paths = {file.digest: file.path for file in reversed(self._prints[j].files) if file.digest}
        for file in self._prints[i].files:
            if file.digest in paths and int(_as_hash(file.digest)[0]) in beyond:
                yield file.path, paths[file.digest]

    def _files_alike(self, i: int, j: int) -> Iterator[tuple[str, str, float]]:
        level = max(self._prints[i].level, self._prints[j].level)
        for one in self._prints[i].files:
            for other in self._prints[j].files:
                first, second = (_without(_sampled(file.pieces, level), self._common) for file in (one, other))
                if min(len(first), len(second)) >= LEAST_PIECES:
                    rate = _jaccard(first, second)
                    if rate >= self._threshold and not (one.digest and one.digest == other.digest):
                        yield one.path, other.path, rate


def _told(pair: Pair, *, sampled: bool, batch: int) -> str:
    parts = []
    if pair.equal_files:
        parts.append(f"equal files: {_listed(pair.equal_files)}")
    if pair.alike:
        parts.append(f"nearly equal scripts: {_listed([(one, other) for one, other, _ in pair.alike])}")
    if pair.similarity is not None:
        of = "a sample of " * sampled
        parts.append(
            f"all their scripts together are {pair.similarity:.0%} alike, whatever their names and texts, "
            f"measured on {of}{pair.measured_on} pieces of code"
        )
    if batch < SMALLEST_BATCH:
        parts.append(f"with fewer than {SMALLEST_BATCH} submissions, what comes from the tutorial cannot be told apart")
    else:
        parts.append(f"{pair.common:.0%} of their code is common in this batch and was left out before")
    return "; ".join(parts) + ". This is likeness, and says nothing about how it came about."


def _listed(files: Sequence[tuple[str, str]]) -> str:
    told = ", ".join(one if one == other else f"{one} and {other}" for one, other in files[:5])
    return told + f" and {len(files) - 5} more" * (len(files) > 5)


def _overlaps(rows: Sequence[Hashes]) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]]:
    """(i, j, how many both have), i < j, for those rows alone that have one in common."""
    from scipy.sparse import csr_array

    places, columns = np.unique(np.concatenate([*rows, _union(())]), return_inverse=True)
    ends = np.cumsum([0, *map(len, rows)])
    matrix = csr_array((np.ones(len(columns), np.int32), columns, ends), shape=(len(rows), len(places)))
    for start in range(0, len(rows), _BLOCK):
        found = (matrix[start : start + _BLOCK] @ matrix[start:].T).tocoo()
        above = found.row < found.col
        yield found.row[above] + start, found.col[above] + start, found.data[above]


# --- sets of hashes, sorted ----------------------------------------------------------------------------------------


def _union(parts: Iterable[Hashes]) -> Hashes:
    return np.unique(np.concatenate([np.array([], np.uint64), *parts]))


def _without(pieces: Hashes, common: Hashes) -> Hashes:
    return np.setdiff1d(pieces, common, assume_unique=True)


def _sampled(pieces: Hashes, level: int) -> Hashes:
    return pieces[(pieces & _mask(level)) == 0] if level else pieces


def _mask(level: int) -> np.uint64:
    return np.uint64((1 << int(level)) - 1)


def _jaccard(one: Hashes, other: Hashes) -> float:
    both = len(np.intersect1d(one, other, assume_unique=True))
    return round(both / max(len(one) + len(other) - both, 1), 3)


def _as_hash(digest: str) -> Hashes:
    return np.array([int(digest[:16], 16)], np.uint64)


def _hashes(pieces: Iterable[bytes]) -> Hashes:
    hashes = [int.from_bytes(hashlib.blake2b(piece, digest_size=8).digest(), "little") for piece in set(pieces)]
    return np.unique(np.array(hashes, np.uint64))


def _bounded(whole: Fingerprint) -> Fingerprint:
    level = 0
    while sum(len(_sampled(file.pieces, level)) for file in whole.files) > MOST_KEPT:
        level += 1
    files = tuple(replace(file, pieces=_sampled(file.pieces, level)) for file in whole.files)
    return replace(whole, files=files, level=level)


# --- what of a file is compared ------------------------------------------------------------------------------------


def _listed_files(folder: Path) -> tuple[Path, ...]:
    try:
        return list_files(folder).files
    except UsageError:
        return ()


def _text(path: Path) -> str:
    try:
        return read_text(path, most_bytes=PICTURED_BYTES)
    except UsageError:
        return ""


def _code(path: Path, text: str) -> str:
    if path.suffix.lower() == ".ipynb":
        try:
            return notebook_script(path)
        except UsageError:
            return ""
    return text if path.suffix.lower() == ".py" else ""


def _digest(text: str) -> str:
    data = text.encode("utf-8", "surrogatepass")
    return hashlib.sha256(data).hexdigest() if len(data) >= LEAST_BYTES else ""


def _pieces(code: str) -> Iterator[bytes]:
    try:
        tokens = _nodes(parse(code))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        tokens = _tokens(code)
    words = [token.encode("utf-8", "replace") for token in islice(tokens, _MOST_NODES)]
    for start in range(len(words) - _PIECE + 1):
        yield b" ".join(words[start : start + _PIECE])


def _nodes(tree: ast.Module) -> Iterator[str]:
    """The tree in the order of the source, without recursion."""
    own = _own_names(tree)
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.expr_context) or _is_docstring(node):
            continue
        yield _word(node, own)
        waiting += reversed(list(ast.iter_child_nodes(node)))


def _word(node: ast.AST, own: set[str]) -> str:
    kind = type(node).__name__
    match node:
        case ast.Constant(value=str() | bytes()):
            return "text"
        case ast.Constant(value=value):
            return _number(value)
        case ast.Attribute(attr=name) | ast.keyword(arg=name) if name and name not in own:
            return f"{kind} {name}"
        case ast.alias(name=name):
            return f"{kind} {name}"
        case ast.ImportFrom(module=name):
            return f"{kind} {name}"
    return kind


def _number(value: object) -> str:
    # Python refuses to write thousands of digits as a decimal number.
    return f"{value:x}" if isinstance(value, int) and not isinstance(value, bool) else repr(value)


def _own_names(tree: ast.Module) -> set[str]:
    """Of attributes and parameters, those that the script itself made up."""
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Attribute(attr=name, ctx=ast.Store()) | ast.arg(arg=name):
                names.add(name)
    return names


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _tokens(code: str) -> Iterator[str]:
    for found in _TOKEN.finditer(code):
        token = found[0]
        if token[0] in "\"'":
            yield "text"
        elif token[0] != "#":
            yield "name" if token[0].isalpha() and not keyword.iskeyword(token) else token
