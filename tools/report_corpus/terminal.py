"""A real shell in a pseudo-terminal, whose screen is drawn as a picture.

bash reads what a student types, continues lines and moves about in real folders; `du` and `ls` list real (sparse)
files. What has no place on this machine (`lmdeploy`, `nvidia-smi`, `python`, ...) prints what it is given.
"""

from __future__ import annotations

import fcntl
import html
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path

import pyte

from tools.report_corpus.looks import Look

_READY, _MORE, _HELD = "\x1b]0;READY\x07", "\x1b]0;MORE\x07", "\x1b]0;HELD\x07"
_PLAYERS = (
    "lmdeploy",
    "python",
    "python3",
    "nvidia-smi",
    "studio-smi",
    "curl",
    "pip",
    "nvitop",
    "gpustat",
    "conda",
    "lsof",
)
_PLAYER = '#!/bin/sh\ncat "$PLAY/out"\nif [ -e "$PLAY/hold" ]; then printf "\\033]0;HELD\\007"; exec sleep 600; fi\n'
_ROWS = 120


class Shell:
    """bash with the prompt `prompt`, at home in `home`. `screen` is what the terminal shows."""

    def __init__(self, home: Path, play: Path, *, prompt: str, columns: int) -> None:
        self.screen = pyte.Screen(columns, _ROWS)
        self._stream = pyte.ByteStream(self.screen)
        self._play = play
        tools = make_players(play)
        inputs = play / "inputrc"
        inputs.write_text("set enable-bracketed-paste off\nset bell-style none\n")
        environment = {
            "HOME": str(home),
            "PATH": f"{tools}:/usr/bin:/bin",
            "TERM": "linux",
            "PLAY": str(play),
            "LANG": "C.UTF-8",
            "INPUTRC": str(inputs),
            "PS1": f"\\[{_READY}\\]{prompt}",
            "PS2": f"\\[{_MORE}\\]> ",
            "HISTFILE": "/dev/null",
            "TIME_STYLE": "+%b %e %H:%M",
            "TZ": "Asia/Shanghai",
        }
        self._master, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, columns, 0, 0))
        self._process = subprocess.Popen(
            ["bash", "--norc", "--noprofile", "-i"],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=home,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0) and None,
        )
        os.close(theirs)
        self._until((_READY,))

    def type(self, command: str, output: str = "", *, hold: bool = False) -> None:
        """Type `command`, line by line; the program that it starts prints `output`, and stays there with `hold`."""
        (self._play / "out").write_text(output)
        held = self._play / "hold"
        held.touch() if hold else held.unlink(missing_ok=True)
        lines = command.split("\n")
        for number, line in enumerate(lines):
            os.write(self._master, line.encode() + b"\n")
            last = number == len(lines) - 1
            self._until((_HELD, _READY) if last else (_MORE,))

    def close(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        os.close(self._master)
        self._process.wait()

    def _until(self, marks: tuple[str, ...]) -> None:
        seen, deadline = b"", time.monotonic() + 20
        ends = tuple(mark.encode() for mark in marks)
        while not any(end in seen for end in ends) or select.select([self._master], [], [], 0.05)[0]:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the shell is stuck after {seen[-200:]!r}")
            if select.select([self._master], [], [], 0.2)[0]:
                piece = os.read(self._master, 65536)
                seen += piece
                self._stream.feed(piece)


def make_players(play: Path) -> Path:
    """Programs that print the file `out`, and `du` and `ls` that count sparse files as if they were full."""
    folder = play / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    scripts = dict.fromkeys(_PLAYERS, _PLAYER) | {
        "du": '#!/bin/sh\nexec /usr/bin/du --apparent-size "$@"\n',
        "ls": '#!/bin/sh\n/usr/bin/ls "$@" | sed "s/^total 0$/total 1.5G/"\n',
    }
    for name, script in scripts.items():
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    return folder


def page(screen: pyte.Screen, look: Look, *, prompt: str, cursor: bool = True) -> str:
    """The rows in use, as a page with the element `#shot`."""
    rows = [number for number in range(screen.lines) if screen.display[number].strip()]
    last = max([*rows, screen.cursor.y])
    drawn = [_row(screen, number, look, prompt, cursor=cursor) for number in range(last + 1)]
    bar = f'<div class="bar"><i></i><i></i><i></i>{html.escape(look.title)}</div>' if look.title else ""
    edge = 26 if look.marks else 8
    return f"""<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0 }}
#shot {{ background: {look.paper}; color: {look.ink}; display: inline-block;
  font: {look.size}px/{look.leading} "{look.font}", "WenQuanYi Micro Hei Mono", monospace }}
.text {{ padding: 6px 10px 6px {edge}px; width: {screen.columns}ch }}
.row {{ white-space: pre; position: relative; min-height: {look.leading}em }}
.bar {{ background: #3a3a3a; color: #eee; font: 13px "Liberation Sans"; padding: 6px; text-align: center }}
.bar i {{ float: left; width: 11px; height: 11px; border-radius: 6px; margin: 2px 4px; background: #d66 }}
.mark::before {{ content: ""; position: absolute; left: -17px; top: .4em; width: 6px; height: 6px; border-radius: 4px;
  background: #2b7fb8 }}
.wide {{ display: inline-block; width: 2ch; text-align: center }}
.cursor {{ outline: 1px solid {look.ink} }}
</style><div id="shot">{bar}<div class="text">{"".join(drawn)}</div></div>"""


def _row(screen: pyte.Screen, number: int, look: Look, prompt: str, *, cursor: bool) -> str:
    cells = [screen.buffer[number][column] for column in range(screen.columns)]
    pieces, at = [], 0
    while at < len(cells):
        style = _style(cells[at], look)
        text = ""
        while at < len(cells) and _style(cells[at], look) == style:
            here = cursor and (screen.cursor.y, screen.cursor.x) == (number, at)
            text += _glyph(cells[at].data, here=here)
            at += 1
        pieces.append(f'<span style="{style}">{text}</span>' if style else text)
    starts = look.marks and screen.display[number].startswith(prompt)
    return f'<div class="row{" mark" if starts else ""}">{"".join(pieces).rstrip() or " "}</div>'


def _glyph(data: str, *, here: bool) -> str:
    if here:
        return f'<span class="cursor">{html.escape(data) or " "}</span>'
    return f'<span class="wide">{html.escape(data)}</span>' if data and ord(data[0]) >= 0x2E80 else html.escape(data)


def _style(cell: pyte.screens.Char, look: Look) -> str:
    if (cell.fg, cell.bg, cell.bold, cell.reverse) == ("default", "default", False, False):
        return ""
    ink, paper = (look.colours.get(name, "") for name in (cell.fg, cell.bg))
    if cell.reverse:
        ink, paper = paper or look.paper, ink or look.ink
    return ";".join(
        part
        for part in (
            f"color:{ink}" if ink else "",
            f"background:{paper}" if paper else "",
            "font-weight:bold" if cell.bold else "",
        )
        if part
    )
