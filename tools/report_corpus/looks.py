"""How students' terminals look: fonts, colours and what their programs draw around the text."""

from __future__ import annotations

from dataclasses import dataclass, field

_NAMES = ("black", "red", "green", "brown", "blue", "magenta", "cyan", "white")


def _colours(normal: str, bright: str) -> dict[str, str]:
    """ANSI colours by pyte's names, from sixteen hexadecimal values."""
    names = (*_NAMES, *(f"bright{name}" for name in _NAMES))
    return {name: f"#{value}" for name, value in zip(names, f"{normal} {bright}".split(), strict=True)}


_VSCODE = _colours(
    "000000 cd3131 0dbc79 e5e510 2472c8 bc3fbc 11a8cd e5e5e5", "666666 f14c4c 23d18b f5f543 3b8eea d670d6 29b8db ffffff"
)
_TANGO = _colours(
    "171421 c01c28 26a269 a2734c 12488b a347ba 2aa1b3 d0cfcc", "5e5c64 f66151 33d17a e9ad0c 2a7bde c061cb 33c7de ffffff"
)
_CAMPBELL = _colours(
    "0c0c0c c50f1f 13a10e c19c00 0037da 881798 3a96dd cccccc", "767676 e74856 16c60c f9f1a5 3b78ff b4009e 61d6d6 f2f2f2"
)
_SOLARIZED = _colours(
    "073642 dc322f 859900 b58900 268bd2 d33682 2aa198 eee8d5", "002b36 cb4b16 586e75 657b83 839496 6c71c4 93a1a1 fdf6e3"
)
_XTERM = _colours(
    "000000 cd0000 00cd00 cdcd00 0000ee cd00cd 00cdcd e5e5e5", "7f7f7f ff0000 00ff00 ffff00 5c5cff ff00ff 00ffff ffffff"
)


@dataclass(frozen=True, kw_only=True)
class Look:
    """A terminal's look. Sizes are in pixels of the page; `marks` are VS Code's dots beside the prompts."""

    font: str = "DejaVu Sans Mono"
    size: float = 14
    leading: float = 1.2
    paper: str = "#1e1e1e"
    ink: str = "#cccccc"
    colours: dict[str, str] = field(default_factory=lambda: _VSCODE)
    marks: bool = False
    title: str = ""  # of the window; none: no bar
    columns: int = 100
    scale: float = 1.0


VSCODE = Look(marks=True, paper="#181818", ink="#d4d4d4")
VSCODE_LIGHT = Look(paper="#ffffff", ink="#333333", marks=True, font="Liberation Mono", size=14, leading=1.25)
GNOME = Look(paper="#300a24", ink="#ffffff", colours=_TANGO, title="user@ubuntu: ~", size=15, leading=1.15)
WINDOWS = Look(
    paper="#0c0c0c", ink="#cccccc", colours=_CAMPBELL, font="Liberation Mono", size=15, title="root@autodl: ~"
)
SOLARIZED_DARK = Look(paper="#002b36", ink="#839496", colours=_SOLARIZED, size=14, leading=1.3)
SOLARIZED_LIGHT = Look(paper="#fdf6e3", ink="#586e75", colours=_SOLARIZED, size=15, font="WenQuanYi Micro Hei Mono")
XTERM = Look(paper="#ffffff", ink="#000000", colours=_XTERM, size=13, leading=1.15)
MAC = Look(
    paper="#ffffff", ink="#111111", colours=_TANGO, size=12, leading=1.2, title="ssh — 96×30", scale=1.5, columns=96
)
WENQUANYI = Look(paper="#1b1d23", ink="#c8ccd4", colours=_TANGO, font="WenQuanYi Micro Hei Mono", size=15, leading=1.25)
