"""What reports of a batch share: pictures, passages, answers, links. Likeness is told with its pair; guilt is not.

A report's print is small and made where the report is read; prints are compared when all of a batch are there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self

from lab3.reports.model import Likeness, Reading, Recognised, Report
from lab3.reports.provenance_moments import Moment, moment_likenesses, moments_of
from lab3.reports.provenance_pictures import PicturePrint, picture_likenesses, picture_prints
from lab3.reports.provenance_text import Passage, passages_of, text_likenesses, tutorial_likenesses
from lab3.reports.provenance_tutorial import Tutorial
from lab3.reports.provenance_urls import UrlSeen, url_likenesses, urls_of

MOST = 2000  # likenesses of a batch


@dataclass(frozen=True, kw_only=True)
class ReportPrint:
    """What of a report is compared."""

    pictures: tuple[PicturePrint, ...] = ()
    passages: tuple[Passage, ...] = ()
    urls: tuple[UrlSeen, ...] = ()
    moments: tuple[Moment, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {
            "pictures": [asdict(each) for each in self.pictures],
            "passages": [each.to_dict() for each in self.passages],
            "urls": [asdict(each) for each in self.urls],
            "moments": [asdict(each) for each in self.moments],
        }

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Self:
        """The print again. Raises TypeError or ValueError if it is none."""
        return cls(
            pictures=tuple(PicturePrint.from_dict(each) for each in told.get("pictures", ())),
            passages=tuple(Passage.from_dict(each) for each in told.get("passages", ())),
            urls=tuple(UrlSeen(**each) for each in told.get("urls", ())),
            moments=tuple(Moment(**each) for each in told.get("moments", ())),
        )


def fingerprint(report: Report, seen: Mapping[str, Recognised], readings: Sequence[Reading] = ()) -> ReportPrint:
    """The report's print; `seen` has the text of its pictures by their digest. Nothing in a report makes it fail."""
    return ReportPrint(
        pictures=tuple(picture_prints(report, seen)),
        passages=tuple(passages_of(report)),
        urls=tuple(urls_of(report)),
        moments=tuple(moments_of(readings)),
    )


def likenesses(
    prints: Mapping[str, ReportPrint],
    *,
    tutorials: Sequence[Tutorial] = (),
    file_of: Callable[[str, str], Path | None] = lambda _name, _digest: None,
) -> tuple[Likeness, ...]:
    """What is alike within each report, between reports, and with the tutorials; at most MOST, in a fixed order.

    `file_of` leads from a report's name and a picture's digest to its file.
    """
    return tuple(islice(_found(dict(sorted(prints.items())), tutorials, file_of), MOST))


def _found(
    prints: Mapping[str, ReportPrint],
    tutorials: Sequence[Tutorial],
    file_of: Callable[[str, str], Path | None],
) -> Iterator[Likeness]:
    pictures = {name: each.pictures for name, each in prints.items()}
    yield from picture_likenesses(pictures, tutorials, file_of=file_of)
    passages = {name: each.passages for name, each in prints.items()}
    yield from text_likenesses(passages, tutorials)
    yield from tutorial_likenesses(passages, tutorials)
    yield from moment_likenesses({name: each.moments for name, each in prints.items()})
    yield from url_likenesses({name: each.urls for name, each in prints.items()})
