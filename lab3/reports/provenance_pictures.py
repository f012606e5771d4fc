"""Pictures that two reports share, or that a report shows twice: by their bytes, their pixels, or how they look.

Terminals look much alike: two server logs that differ in a process id may have equal perceptual hashes. So hashes only
choose which pictures to compare. Two are alike if all their figures are the same and nearly all their text, as OCR read
it, and if nowhere, in the size of a letter, their pixels differ more than scaling and JPEG explain.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from lab3.errors import UsageError
from lab3.reports.model import Likeness, Place, Recognised, Report
from lab3.reports.provenance_text import letters

if TYPE_CHECKING:
    from PIL.Image import Image

    from lab3.reports.provenance_tutorial import Tutorial

HASH_SIDE = 16  # a hash has 256 bits
LIKE_BITS = 24  # of 256 may differ in each hash; scaled, and saved again as JPEG of quality 20, 16 did
LIKE_TILES = 6.0  # of 255: what two letters' brightness may differ; JPEG of quality 60 made 6, another digit 6 to 35
LIKE_TEXT = 0.85  # of the runs of letters in both
TELLING_FIGURES = 4  # with fewer, and little text, two honest pictures may be the same
TELLING_LETTERS = 80
SHARED_BY = 1 / 3  # of a batch: what more have comes from a common source
SMALLEST_BATCH = 6
_RUN = 4
_TILE = 8  # pixels
_MOST_LETTERS = 4000
_RATIO = 0.04  # two pictures' shapes may differ so much
_FLAT = 3.0  # standard deviation of the brightness (0 to 255) of a picture that shows nothing
_FIGURE = re.compile(r"\d+(?:[.:]\d+)*")


@dataclass(frozen=True, kw_only=True)
class PicturePrint:
    """A picture of a report, where it stands, and what of it is compared. Hashes are empty if it cannot be opened."""

    digest: str
    blocks: tuple[int, ...]
    sections: tuple[str, ...]  # the heading that each stands under
    target: str
    pixels: str = ""  # digest of its pixels
    ratio: float = 0.0  # width / height
    phash: str = ""
    dhash: str = ""
    text: str = ""  # its letters and digits
    figures: tuple[str, ...] = ()  # as OCR read them, sorted
    flat: bool = False  # it shows nothing

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Self:
        """The print again, from JSON."""
        listed = {name: tuple(told[name]) for name in ("blocks", "sections", "figures")}
        return cls(**{**told, **listed})

    def places(self) -> tuple[Place, ...]:
        """Where it stands."""
        return tuple(Place(block=block, quote=self.target[:300], picture=self.digest) for block in self.blocks)


@dataclass(frozen=True)
class _Held:
    """A picture and the report that shows it."""

    name: str
    shown: PicturePrint


def picture_prints(report: Report, seen: Mapping[str, Recognised]) -> Iterator[PicturePrint]:
    """The prints of a report's pictures, each once."""
    blocks: dict[str, list[int]] = {}
    for number, block in enumerate(report.blocks):
        if block.picture is not None and block.picture.digest:
            blocks.setdefault(block.picture.digest, []).append(number)
    for digest, numbers in blocks.items():
        picture = report.blocks[numbers[0]].picture
        if picture is None:
            continue
        lines = [line.text for line in seen[digest].lines] if digest in seen else []
        looks = _looks(picture.path) if picture.path is not None else {}
        yield PicturePrint(
            digest=digest,
            blocks=tuple(numbers),
            sections=tuple(" › ".join(report.blocks[number].section) for number in numbers),
            target=picture.target[:300],
            text=letters("".join(lines))[:_MOST_LETTERS],
            figures=tuple(sorted(figure for line in lines for figure in _FIGURE.findall(line))),
            **looks,
        )


def picture_likenesses(
    pictures: Mapping[str, Sequence[PicturePrint]],
    tutorials: Sequence[Tutorial] = (),
    *,
    file_of: Callable[[str, str], Path | None] = lambda _name, _digest: None,
) -> Iterator[Likeness]:
    """Pictures twice in a report, of a tutorial, in two reports, and those that look alike.

    `file_of` leads from a report's name and a picture's digest to its file; without that, no two are told to be alike.
    """
    theirs = frozenset().union(*(each.pictures for each in tutorials))
    common = _common(pictures)
    for name, own in pictures.items():
        yield from _twice(name, own)
        yield from _of_tutorials(name, own, tutorials)
        yield from _of_many(name, own, common, len(pictures))
    held = [
        _Held(name, each)
        for name, own in pictures.items()
        for each in own
        if not each.flat and each.digest not in theirs and each.digest not in common
    ]
    same = dict(_same(held))
    yield from same.values()
    yield from (each for pair, each in _alike(held, file_of) if pair not in same)


def may_be_alike(one: PicturePrint, other: PicturePrint) -> bool:
    """Whether two pictures may be one that was scaled, or saved again with loss, as far as their prints tell."""
    if not (one.phash and other.phash) or one.flat or other.flat or one.figures != other.figures:
        return False
    if abs(math.log(one.ratio / other.ratio)) > _RATIO or not (_telling(one) and _telling(other)):
        return False
    apart = max(_bits_apart(one.phash, other.phash), _bits_apart(one.dhash, other.dhash))
    return apart <= LIKE_BITS and _text_shared(one.text, other.text) >= LIKE_TEXT


def _looks(path: Path) -> dict[str, Any]:
    """What the pixels tell; nothing for what is no picture, or too large a one."""
    from PIL import Image

    from lab3.reports.ocr_picture import load_pixels

    try:
        return _looks_of(Image.fromarray(load_pixels(path)))
    except UsageError:
        return {}


def _looks_of(picture: Image) -> dict[str, Any]:
    import imagehash
    from PIL import ImageStat

    grey = picture.convert("L")
    size = f"{picture.width}x{picture.height}".encode()
    return {
        "pixels": hashlib.sha256(size + picture.tobytes()).hexdigest(),
        "ratio": picture.width / picture.height,
        "phash": str(imagehash.phash(grey, hash_size=HASH_SIDE)),
        "dhash": str(imagehash.dhash(grey, hash_size=HASH_SIDE)),
        "flat": ImageStat.Stat(grey).stddev[0] < _FLAT,
    }


def _twice(name: str, own: Iterable[PicturePrint]) -> Iterator[Likeness]:
    for each in own:
        sections = list(dict.fromkeys(each.sections))
        if len(each.blocks) > 1 and not each.flat:
            where = f": {', '.join(sections)[:300]}" if len(sections) > 1 else ""
            yield Likeness(
                kind="same_picture",
                one=name,
                other=name,
                what=f"the report shows this picture {len(each.blocks)} times{where}",
                share=1.0,
                places=each.places(),
            )


def _of_tutorials(name: str, own: Iterable[PicturePrint], tutorials: Sequence[Tutorial]) -> Iterator[Likeness]:
    for tutorial in tutorials:
        for each in own:
            if each.digest in tutorial.pictures:
                what = f"the picture is one of {tutorial.name}"
                places = each.places()
                yield Likeness(
                    kind="tutorial_picture", one=name, other=tutorial.name, what=what, share=1.0, places=places
                )


def _common(pictures: Mapping[str, Sequence[PicturePrint]]) -> Mapping[str, int]:
    """Pictures, by digest, that more than SHARED_BY of a batch have, and how many do."""
    if len(pictures) < SMALLEST_BATCH:
        return {}
    counts = Counter(digest for own in pictures.values() for digest in {each.digest for each in own})
    return {digest: count for digest, count in counts.items() if count > len(pictures) * SHARED_BY}


def _of_many(name: str, own: Iterable[PicturePrint], common: Mapping[str, int], batch: int) -> Iterator[Likeness]:
    for each in own:
        if each.digest in common and not each.flat:
            yield Likeness(
                kind="tutorial_picture",
                one=name,
                other="this batch",
                what=f"{common[each.digest]} of {batch} reports of this batch show this picture",
                share=round(common[each.digest] / batch, 3),
                places=each.places(),
            )


def _same(held: Sequence[_Held]) -> Iterator[tuple[tuple[str, str, str, str], Likeness]]:
    groups: dict[str, list[_Held]] = {}
    for each in held:
        groups.setdefault(each.shown.pixels or each.shown.digest, []).append(each)
    for group in groups.values():
        for one, other in combinations(group, 2):
            if one.name != other.name or one.shown.digest != other.shown.digest:
                what = "the same picture" + _as_in(one, other)
                yield _pair(one, other), _likeness(one, other, "same_picture", what, 1.0)


def _alike(
    held: Sequence[_Held], file_of: Callable[[str, str], Path | None]
) -> Iterator[tuple[tuple[str, str, str, str], Likeness]]:
    groups: dict[tuple[str, ...], list[_Held]] = {}
    for each in held:
        groups.setdefault(each.shown.figures, []).append(each)
    for group in groups.values():
        for one, other in combinations(group, 2):
            if may_be_alike(one.shown, other.shown) and _pixels_alike(one, other, file_of):
                apart = _bits_apart(one.shown.phash, other.shown.phash)
                what = "nearly the same picture, with the same figures" + _as_in(one, other)
                share = round(1 - apart / HASH_SIDE**2, 3)
                yield _pair(one, other), _likeness(one, other, "like_picture", what, share)


def _pixels_alike(one: _Held, other: _Held, file_of: Callable[[str, str], Path | None]) -> bool:
    files = [file_of(each.name, each.shown.digest) for each in (one, other)]
    return files[0] is not None and files[1] is not None and tiles_apart(files[0], files[1]) <= LIKE_TILES


def tiles_apart(one: Path, other: Path) -> float:
    """The most that two pictures differ in brightness (0 to 255) in a place of a letter's size; 255 if not known."""
    from PIL import Image, ImageChops, ImageFilter

    try:
        with Image.open(one) as first, Image.open(other) as second:
            grey = sorted((first.convert("L"), second.convert("L")), key=lambda each: each.width * each.height)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 255.0
    small = grey[0]
    large = grey[1].resize(small.size, Image.Resampling.LANCZOS)
    blur = ImageFilter.GaussianBlur(1.0)
    apart = ImageChops.difference(small.filter(blur), large.filter(blur))
    tiles = apart.resize((max(1, small.width // _TILE), max(1, small.height // _TILE)), Image.Resampling.BOX)
    extremes: Any = tiles.getextrema()
    return float(extremes[1])


def _as_in(one: _Held, other: _Held) -> str:
    return " twice, in two files" if one.name == other.name else f" as in {other.name}"


def _likeness(one: _Held, other: _Held, kind: Any, what: str, share: float) -> Likeness:
    places = one.shown.places() + (other.shown.places() if one.name == other.name else ())
    return Likeness(kind=kind, one=one.name, other=other.name, what=what, share=share, places=places)


def _pair(one: _Held, other: _Held) -> tuple[str, str, str, str]:
    return one.name, one.shown.digest, other.name, other.shown.digest


def _telling(shown: PicturePrint) -> bool:
    """Whether it has so much in it that two people would hardly make it independently."""
    many = {figure for figure in shown.figures if len(figure) > 1}
    return len(many) >= TELLING_FIGURES or len(shown.text) >= TELLING_LETTERS


def _bits_apart(one: str, other: str) -> int:
    return (int(one, 16) ^ int(other, 16)).bit_count()


def _text_shared(one: str, other: str) -> float:
    first, second = _runs(one), _runs(other)
    return len(first & second) / len(first | second) if first or second else 1.0


def _runs(text: str) -> set[str]:
    return {text[start : start + _RUN] for start in range(max(len(text) - _RUN + 1, 1))} if text else set()
