"""Answers of a server that two reports show from the same second: a crop of another's screenshot, or its text.

Every printed completion says when it was made. Two people ask in the same second by chance now and then: that is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from lab3.reports.model import CompletionSeen, Likeness, Place, Reading

_SHARED_BY = 1 / 3
_SMALLEST_BATCH = 6


@dataclass(frozen=True, kw_only=True)
class Moment:
    """When an answer was made, in seconds since 1970, and where that is shown."""

    created: int
    block: int
    picture: str = ""  # its digest

    def place(self) -> Place:
        """Where it stands."""
        return Place(block=self.block, quote=f"created={self.created}", picture=self.picture or None)


def moments_of(readings: Iterable[Reading]) -> Iterator[Moment]:
    """The answers that a report shows, in pictures, code and output, as far as they can be read without a doubt."""
    for reading in readings:
        if isinstance(reading, CompletionSeen) and reading.created is not None and not reading.doubt:
            yield Moment(created=reading.created, block=reading.place.block, picture=reading.place.picture or "")


def moment_likenesses(moments: Mapping[str, Sequence[Moment]]) -> Iterator[Likeness]:
    """Pairs of reports with answers from the same second, but for pictures that both have anyway."""
    holders: dict[int, dict[str, Moment]] = {}
    for name, own in moments.items():
        for each in own:
            holders.setdefault(each.created, {}).setdefault(name, each)
    pairs: dict[tuple[str, str], list[tuple[Moment, Moment]]] = {}
    for shared in holders.values():
        if len(moments) >= _SMALLEST_BATCH and len(shared) > len(moments) * _SHARED_BY:
            continue  # a common source
        for one, other in combinations(sorted(shared), 2):
            if not (shared[one].picture and shared[one].picture == shared[other].picture):
                pairs.setdefault((one, other), []).append((shared[one], shared[other]))
    for (one, other), both in sorted(pairs.items()):
        times = ", ".join(str(first.created) for first, _ in both[:5])
        yield Likeness(
            kind="like_picture" if any(first.picture or second.picture for first, second in both) else "same_text",
            one=one,
            other=other,
            what=f"both show an answer that a server made in the same second (created={times}); it may be by chance",
            places=tuple(first.place() for first, _ in both),
        )
