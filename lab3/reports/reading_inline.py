"""The inside of a paragraph: text, pictures, links to pictures; and the ways of embedding one that are no Markdown."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

from lab3.reports.model import Picture
from lab3.reports.reading_pictures import is_picture_name

PictureOf = Callable[[str, str], Picture]
_MARK = "lab3-embedded:"  # stands for a data: URI while its text is parsed
_SHORT_URI = 400  # characters
_URI_END = re.compile(r"[)\"'<> \t\n]|$")
_URL_ENDS = frozenset("，。；）、！）】」”’)>\"'` \t\n|")
_SCHEMES = ("http://", "https://")


@dataclass(frozen=True, kw_only=True)
class Part:
    """Text, or a picture; `lines`: how many lines after the paragraph's first one it begins."""

    lines: int
    text: str = ""
    picture: Picture | None = None
    codes: tuple[str, ...] = ()
    bold: bool = False


@dataclass(frozen=True, kw_only=True)
class Inline:
    """The parts of a paragraph, or of a table's cell, in their order."""

    parts: tuple[Part, ...] = ()

    @property
    def text(self) -> str:
        return " ".join(part.text.strip() for part in self.parts if part.picture is None and part.text.strip())

    @property
    def pictures(self) -> tuple[Picture, ...]:
        return tuple(part.picture for part in self.parts if part.picture is not None)

    @property
    def codes(self) -> tuple[str, ...]:
        return tuple(code for part in self.parts for code in part.codes)


# ------------------------------------------------------------------------------------------ pictures in the text itself


@dataclass(frozen=True, kw_only=True)
class Attachment:
    name: str
    data: bytes


@dataclass(frozen=True, kw_only=True)
class SetAside:
    """What was taken out of a text before it was parsed: data: URIs, and the attachments of a notebook's cell."""

    uris: tuple[str, ...] = ()
    attachments: Mapping[str, bytes] = field(default_factory=dict)

    def with_attachments(self, attachments: Mapping[str, bytes]) -> SetAside:
        return replace(self, attachments=attachments)

    def uri_of(self, target: str) -> str:
        """The data: URI that stands behind a mark; any other target as it is."""
        number = target.removeprefix(_MARK)
        is_mark = number != target and number.isdecimal() and number.isascii() and len(number) < 10
        return self.uris[int(number)] if is_mark and int(number) < len(self.uris) else target

    def data_of(self, target: str) -> Attachment | None:
        name = target.removeprefix("attachment:")
        if name == target:
            return None
        data = self.attachments.get(name, self.attachments.get(unquote(name)))
        return None if data is None else Attachment(name=target, data=data)


def pictures_set_aside(text: str) -> tuple[str, SetAside]:
    """The text with a short mark for each `data:image/…`: megabytes of base64 are nothing for a parser."""
    kept: list[str] = []
    uris: list[str] = []
    start = 0
    while (found := text.find("data:image/", start)) >= 0:
        ends = _URI_END.search(text, found)
        end = ends.start() if ends else len(text)
        if end - found < _SHORT_URI:
            kept.append(text[start:end])
        else:
            kept += [text[start:found], f"{_MARK}{len(uris)}"]
            uris.append(text[found:end])
        start = end
    return "".join([*kept, text[start:]]), SetAside(uris=tuple(uris))


def decoded_base64(text: str) -> bytes | None:
    """The bytes, None if it is none."""
    try:
        return base64.b64decode(text)
    except (binascii.Error, ValueError):
        return None


# ------------------------------------------------------------------------------------------------- a paragraph's tokens


def read_inline(children: Sequence[Token], picture_of: PictureOf) -> Inline:
    """The parts of a paragraph whose tokens are `children`."""
    reading = _Inline(picture_of)
    for token in children:
        reading.step(token)
    return reading.done()


class _Inline:
    def __init__(self, picture_of: PictureOf) -> None:
        self._picture_of = picture_of
        self._parts: list[Part] = []
        self._text: list[str] = []
        self._codes: list[str] = []
        self._plain = False  # something of the text is not bold
        self._some = False  # the text is more than spaces
        self._bold = 0
        self._lines = self._begun = 0
        self._links: list[tuple[str, int, int]] = []  # target, pieces of text and parts before it

    def step(self, token: Token) -> None:
        match token.type:
            case "text":
                self._say(token.content)
                self._bare_urls(token.content)
            case "code_inline":
                self._say(token.content)
                self._codes.append(token.content)
            case "softbreak" | "hardbreak":
                self._text.append("\n")
                self._lines += 1
            case "image":
                alt = "".join(child.content for child in token.children or [] if child.type in ("text", "code_inline"))
                self._picture(str(token.attrs.get("src", "")), alt or token.content)
            case "strong_open" | "strong_close":
                self._bold += token.nesting
            case "link_open":
                self._links.append((str(token.attrs.get("href", "")), len(self._text), len(self._parts)))
            case "link_close" if self._links:
                self._link(*self._links.pop())
            case "html_inline":
                self._html(token.content)
            case _:
                pass

    def done(self) -> Inline:
        self._flush()
        return Inline(parts=tuple(self._parts))

    def _say(self, text: str) -> None:
        if not self._some:
            self._text, self._begun = [], self._lines
        self._text.append(text)
        self._some = self._some or bool(text.strip())
        self._plain = self._plain or (not self._bold and bool(text.strip(" :：")))

    def _flush(self) -> None:
        text = "".join(self._text)
        if text.strip():
            codes, bold = tuple(self._codes), not self._plain
            self._parts.append(Part(lines=self._begun, text=text, codes=codes, bold=bold))
        self._text, self._codes, self._plain, self._some = [], [], False, False

    def _picture(self, target: str, alt: str) -> None:
        self._flush()
        self._parts.append(Part(lines=self._lines, picture=self._picture_of(unescaped(target), alt)))
        self._begun = self._lines

    def _link(self, target: str, pieces: int, parts: int) -> None:
        """A link to a picture shows it, unless it only makes a shown one larger."""
        if not is_picture_name(target) or any(part.picture for part in self._parts[parts:]):
            return
        text = "".join(self._text[pieces:]).strip()
        if not text.startswith(_SCHEMES):  # else it was shown as a bare URL
            self._picture(target, text)

    def _bare_urls(self, text: str) -> None:
        for url in bare_pictures(text):
            self._picture(url, "")

    def _html(self, tag: str) -> None:
        lower = tag.lower()
        if lower.startswith("<br"):
            self._text.append("\n")
        elif lower.startswith("<img"):
            target, alt = image_of(tag)
            if target:
                self._picture(target, alt)
        elif lower.startswith(("<b>", "<strong", "</b>", "</strong")):
            self._bold += -1 if lower.startswith("</") else 1
            self._bold = max(self._bold, 0)


def bare_pictures(text: str) -> list[str]:
    """The URLs of pictures that stand in a text as they are."""
    found = []
    for scheme in _SCHEMES:
        start = 0
        while (at := text.find(scheme, start)) >= 0:
            end = at
            while end < len(text) and text[end] not in _URL_ENDS:
                end += 1
            start = max(end, at + 1)
            if is_picture_name(text[at:end]):
                found.append(text[at:end])
    return found


def image_of(tag: str) -> tuple[str, str]:
    """(target, alt) of an `<img …>`, also one whose end is missing."""
    from bs4 import BeautifulSoup

    image = BeautifulSoup(tag if tag.rstrip().endswith(">") else f"{tag}>", "html.parser").find("img")
    if image is None:
        return "", ""
    return source_of(image.attrs), str(image.attrs.get("alt") or "")


def source_of(attributes: Mapping[str, object]) -> str:
    """Where an `<img>` of these attributes has its picture; pages that load late keep it beside a placeholder."""
    late = ("data-original", "data-actualsrc", "data-src", "data-lazy-src")
    src = str(attributes.get("src") or "")
    placeholder = not src or src.startswith("data:image/svg") or (src.startswith("data:image/gif") and len(src) < 200)
    if placeholder:
        return next((str(attributes[name]) for name in late if attributes.get(name)), src)
    return src


def unescaped(target: str) -> str:
    """markdown-it encodes what it reads as a URL; a path that only holds text gets its letters back."""
    return target if target.lower().startswith(_SCHEMES) or "%" not in target else unquote(target, errors="replace")


# ----------------------------------------------------------------------------------------------- ways of embedding one


def lenient_pictures(parser: MarkdownIt) -> None:
    """Teach a parser `![[x.png|300]]`, and `![](a path with spaces.png =300x)`, which CommonMark takes for text."""
    parser.inline.ruler.before("link", "wiki_picture", _wiki)
    parser.inline.ruler.after("image", "lenient_picture", _lenient)


def _wiki(state: StateInline, silent: bool) -> bool:
    shown = state.src.startswith("![[", state.pos)
    if not shown and not state.src.startswith("[[", state.pos):
        return False
    start = state.pos + (3 if shown else 2)
    end = state.src.find("]]", start, min(start + 400, state.posMax))
    if end < 0 or "\n" in state.src[start:end]:
        return False
    target, _, label = state.src[start:end].partition("|")
    if not shown and not is_picture_name(target):
        return False
    _push(
        state, target.strip().split("#")[0], "" if label.replace("x", "").strip().isdigit() else label, end + 2, silent
    )
    return True


def _lenient(state: StateInline, silent: bool) -> bool:
    """Runs where CommonMark's own rule has found no picture."""
    if not state.src.startswith("![", state.pos):
        return False
    middle = state.src.find("](", state.pos, min(state.pos + 400, state.posMax))
    if middle < 0 or "![" in state.src[state.pos + 2 : middle] or "\n" in state.src[state.pos : middle]:
        return False
    end = _closing(state.src, middle + 2, state.posMax)
    target = _without_title(state.src[middle + 2 : end])
    if end < 0 or not target:
        return False
    _push(state, target, state.src[state.pos + 2 : middle], end + 1, silent)
    return True


def _push(state: StateInline, target: str, alt: str, end: int, silent: bool) -> None:
    if not silent:
        token = state.push("image", "img", 0)
        token.attrs = {"src": target.replace("%", "%25") if not target.lower().startswith(_SCHEMES) else target}
        token.content = alt
    state.pos = end


def _closing(text: str, start: int, most: int) -> int:
    """The parenthesis that ends a target; pairs of them belong to it. -1 if the line ends before."""
    depth, at = 0, start
    last = -1
    while at < min(most, start + 1000) and text[at] != "\n":
        if text[at] == "(":
            depth += 1
        elif text[at] == ")":
            last = at
            if depth == 0:
                return at
            depth -= 1
        at += 1
    return last


def _without_title(target: str) -> str:
    """`a b.png "title" =300x200` → `a b.png`."""
    plain = target.strip()
    size = plain.rfind(" =")
    if size > 0 and plain[size + 2 :].replace("x", "").replace("%", "").replace("*", "").isdigit():
        plain = plain[:size].rstrip()
    for quote in "\"'":
        before, mark, _ = plain.partition(f" {quote}")
        if mark and plain.endswith(quote):
            plain = before.rstrip()
    return plain.strip("<>").strip()
