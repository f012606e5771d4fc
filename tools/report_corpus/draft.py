"""A report in the making: its pictures, its text, and what a person reads and judges."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.report_corpus import lab, pages
from tools.report_corpus.browser import Browser
from tools.report_corpus.effects import Effect, encoded, opened
from tools.report_corpus.looks import VSCODE, Look
from tools.report_corpus.terminal import Shell, page

Step = tuple[str, str] | tuple[str, str, bool]  # what is typed; what its program prints; whether it stays
Expected = Mapping[str, str | list[str]]


@dataclass
class Draft:
    """One student's report in `folder`. The drawing methods give the picture's file name for the text."""

    folder: Path
    browser: Browser
    scratch: Path
    look: Look = VSCODE
    prompt: str = r"(lmdeploy) \[\e[1;32m\]root@intern-studio-{host}\[\e[0m\]:\[\e[1;34m\]\w\[\e[0m\]# "
    images: str = "images"
    suffix: str = ".png"
    colours: int = 16
    quality: int = 75
    figures: dict[str, list[str]] = field(default_factory=dict)
    _shells: int = 0

    def __post_init__(self) -> None:
        self.prompt = self.prompt.replace("{host}", f"{10000 + self.moment('host') % 89999}")

    # --- pictures ---

    def terminal(
        self,
        name: str,
        steps: Sequence[Step],
        *,
        figures: Sequence[str] = (),
        effects: Sequence[Effect] = (),
        folders: Mapping[str, int] | None = None,
        look: Look | None = None,
        cursor: bool = True,
    ) -> str:
        """A shell in which `steps` are typed, one after another. `folders`: sparse model folders at home, in bytes."""
        look = look or self.look
        self._shells += 1
        home, play = self.scratch / f"{self.folder.name}-{self._shells}", self.scratch / "play"
        home.mkdir(parents=True)
        for path, size in (folders or {}).items():
            make_folder(home / path, size)
        shell = Shell(home, play, prompt=self.prompt, columns=look.columns)
        try:
            for command, output, *hold in steps:
                shell.type(command, output, hold=bool(hold and hold[0]))
            drawn = page(shell.screen, look, prompt=self._plain_prompt(), cursor=cursor)
        finally:
            shell.close()
            shutil.rmtree(home)
        return self._shot(name, drawn, figures, effects, scale=look.scale)

    def bar(
        self, name: str, used: int, total: int, *, effects: Sequence[Effect] = (), scale: float = 1.0, **more: Any
    ) -> str:
        return self._shot(
            name, pages.bar(used, total, moment=self.moment(name), **more), [f"{used}/{total}"], effects, scale=scale
        )

    def smi(
        self,
        name: str,
        gpus: Sequence[lab.Gpu],
        driver: lab.Driver = lab.DRIVER_535,
        *,
        command: str = "nvidia-smi",
        effects: Sequence[Effect] = (),
        look: Look | None = None,
    ) -> str:
        figures = [f"{gpu.used}/{gpu.total}" for gpu in gpus]
        return self.terminal(
            name,
            [(command, lab.nvidia_smi(gpus, driver, moment=self.moment(name)))],
            figures=figures,
            effects=effects,
            look=look,
        )

    def chat(
        self,
        name: str,
        model: str,
        turns: Sequence[tuple[str, str]],
        *,
        effects: Sequence[Effect] = (),
        scale: float = 1.0,
        **more: Any,
    ) -> str:
        return self._shot(name, pages.chat(model, turns, **more), [], effects, scale=scale)

    def editor(self, name: str, code: str, *, effects: Sequence[Effect] = (), scale: float = 1.0, **more: Any) -> str:
        return self._shot(name, pages.editor(code, **more), [], effects, scale=scale)

    def script(self, name: str, command: str, script: lab.Script, *, effects: Sequence[Effect] = ()) -> str:
        """A run of the student's script in a terminal."""
        figures = [figure for each in script.rounds for figure in each.figures]
        return self.terminal(name, [(command, script.output())], figures=figures, effects=effects)

    def take(self, name: str, other: Path, *, effects: Sequence[Effect] = ()) -> str:
        """Somebody else's picture, as it is; with effects, saved anew."""
        target = self._target(name)
        data = other.read_bytes()
        if effects or target.suffix != other.suffix:
            picture = opened(data)
            for effect in effects:
                picture = effect(picture)
            data = encoded(picture, target.suffix, quality=self.quality)
        target.write_bytes(data)
        return self._link(target)

    def unreadable(self, name: str) -> None:
        """Nobody reads figures in this picture."""
        self.figures[self._link(self._target(name))] = []

    def path(self, name: str) -> Path:
        return self._target(name)

    def _shot(self, name: str, drawn: str, figures: Sequence[str], effects: Sequence[Effect], *, scale: float) -> str:
        target = self._target(name)
        picture = opened(self.browser.shot(drawn, scale=scale))
        for effect in effects:
            picture = effect(picture)
        target.write_bytes(encoded(picture, target.suffix, colours=self.colours, quality=self.quality))
        self.figures[self._link(target)] = list(figures)
        return self._link(target)

    def moment(self, name: str) -> int:
        """A number of its own for each picture, for what changes from one moment to the next."""
        return zlib.crc32(f"{self.folder.name}/{name}".encode())

    def _target(self, name: str) -> Path:
        folder = self.folder / self.images
        folder.mkdir(parents=True, exist_ok=True)
        return folder / (name if "." in name else f"{name}{self.suffix}")

    def _link(self, target: Path) -> str:
        return target.relative_to(self.folder).as_posix()

    def _plain_prompt(self) -> str:
        plain = re.sub(r"\\\[.*?\\\]", "", self.prompt)
        return re.split(r"\\", plain, maxsplit=1)[0]

    # --- words ---

    def write(self, text: str, name: str = "report.md", *, encoding: str = "utf-8", newline: str = "\n") -> None:
        """The report's text. Leading line breaks of a literal are dropped."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_bytes(text.lstrip("\n").replace("\n", newline).encode(encoding))

    def expect(
        self,
        story: str,
        expected: Expected,
        *,
        kinds: Mapping[str, str | list[str]] | None = None,
        review: Sequence[str] = (),
        alike: Sequence[str] = (),
    ) -> None:
        """What a careful person judges. `review`: checks that must ask for it; `alike`: reports that share pictures."""
        record = {
            "story": story,
            "expected": {f"report.{name}": status for name, status in expected.items()},
            "kinds": {f"report.{name}": kind for name, kind in (kinds or {}).items()},
            "review": [f"report.{name}" for name in review],
            "alike": list(alike),
            "figures": {picture: read for picture, read in self.figures.items() if read},
        }
        text = json.dumps(record, ensure_ascii=False, indent=1) + "\n"
        (self.folder / "expected.json").write_text(text, encoding="utf-8")


def make_folder(folder: Path, size: int) -> None:
    """A model's folder with sparse files of `size` bytes together."""
    folder.mkdir(parents=True)
    small = {
        "config.json": 1034,
        "generation_config.json": 123,
        "tokenizer.model": 1477754,
        "tokenizer_config.json": 2496,
    }
    for name, length in small.items() if size else ():
        _sparse(folder / name, length)
    rest, part = size - sum(small.values()), 1
    while rest > 0:
        length = min(rest, 1_999_000_000)
        _sparse(folder / f"model-{part:05d}.safetensors", length)
        rest, part = rest - length, part + 1


def _sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)
    subprocess.run(["touch", "-d", "2024-11-26 09:20", str(path)], check=True)
