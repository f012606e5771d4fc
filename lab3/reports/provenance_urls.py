"""Where a report's pictures are linked from: somebody else's repository, or the same links as another report's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from urllib.parse import unquote, urlsplit

from lab3.reports.model import Likeness, Place, Report

_HOME = 0.6  # of a report's links are from one owner: then that is where it lives
_LEAST_LINKS = 3
_SHARED_BY = 1 / 3
_SMALLEST_BATCH = 6
_OWNED = frozenset({"github.com", "raw.githubusercontent.com", "www.github.com", "gitee.com", "gitlab.com"})


@dataclass(frozen=True, kw_only=True)
class UrlSeen:
    """A picture's link. `owner` is whose repository it names, e.g. "github.com/somebody/notes"; empty where none is."""

    block: int
    url: str
    owner: str

    def place(self) -> Place:
        """Where it stands."""
        return Place(block=self.block, quote=self.url[:300])


def urls_of(report: Report) -> Iterator[UrlSeen]:
    """The links of a report's pictures to elsewhere."""
    for number, block in enumerate(report.blocks):
        if block.picture is not None and block.picture.target.startswith(("http://", "https://")):
            url = block.picture.target.strip()[:2000]
            yield UrlSeen(block=number, url=_without_query(url), owner=owner_of(url))


def owner_of(url: str) -> str:
    """The repository that a link names, in lower case; empty for hosts of pictures, where links name nobody."""
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").lower()
    except ValueError:
        return ""
    folders = [unquote(each).lower() for each in parts.path.split("/") if each]
    if host not in _OWNED or len(folders) < 2:
        return ""
    host = {"raw.githubusercontent.com": "github.com", "www.github.com": "github.com"}.get(host, host)
    return f"{host}/{folders[0]}/{folders[1]}"


def url_likenesses(urls: Mapping[str, Sequence[UrlSeen]]) -> Iterator[Likeness]:
    """Links that stick out in their report, and links that two reports share."""
    for name, own in urls.items():
        yield from _borrowed(name, own)
    yield from _shared(urls)


def _borrowed(name: str, urls: Sequence[UrlSeen]) -> Iterator[Likeness]:
    owners = Counter(each.owner for each in urls if each.owner)
    if owners.total() < _LEAST_LINKS:
        return
    home, most = owners.most_common(1)[0]
    if most < owners.total() * _HOME:
        return
    for owner, count in sorted(owners.items()):
        if owner.split("/")[:2] != home.split("/")[:2]:
            yield Likeness(
                kind="borrowed_url",
                one=name,
                other=owner,
                what=f"{count} of its pictures are linked from {owner}, the other {most} from {home}",
                share=round(count / owners.total(), 3),
                places=tuple(each.place() for each in urls if each.owner == owner),
            )


def _shared(urls: Mapping[str, Sequence[UrlSeen]]) -> Iterator[Likeness]:
    holders: dict[str, set[str]] = {}
    for name, own in urls.items():
        for each in own:
            holders.setdefault(each.url, set()).add(name)
    pairs: dict[tuple[str, str], set[str]] = {}
    for url, names in holders.items():
        if len(urls) >= _SMALLEST_BATCH and len(names) > len(urls) * _SHARED_BY:
            continue  # from a common source
        for one, other in combinations(sorted(names), 2):
            pairs.setdefault((one, other), set()).add(url)
    for (one, other), both in sorted(pairs.items()):
        yield Likeness(
            kind="borrowed_url",
            one=one,
            other=other,
            what=f"{len(both)} of its pictures are linked from the same address as in {other}",
            share=round(len(both) / len({each.url for each in urls[one]}), 3),
            places=tuple(each.place() for each in urls[one] if each.url in both),
        )


def _without_query(url: str) -> str:
    return url.split("#")[0].split("?")[0]
