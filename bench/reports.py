"""How long reports take to grade, and what memory the grader and its workers hold, with pictures drawn here.

python -m bench.reports --pictures 15            (one report: under 60 s on 2 cores is due)
python -m bench.reports --count 100 --pictures 3 (memory that does not grow)
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import threading
import time
from pathlib import Path

import psutil

from lab3.reports.batch import grade_batch, make_plan
from lab3.threads import wait_patiently

_TERMINALS = (
    (
        "(lab) root@{host}:~# lmdeploy serve api_server ./internlm2_5-1_8b-chat-w4a16-4bit \\",
        ">     --model-format awq --quant-policy 4 --cache-max-entry-count 0.4 --server-port 23333",
        "HINT:    Please open http://0.0.0.0:23333 in a browser for detailed api usage!!!",
        "INFO:     Started server process [{pid}]",
        "INFO:     Uvicorn running on http://0.0.0.0:23333 (Press CTRL+C to quit)",
    ),
    (
        "(lab) root@{host}:~/model# du -sh *",
        "3.6G    internlm2_5-1_8b-chat",
        "1.5G    internlm2_5-1_8b-chat-w4a16-4bit",
    ),
    (
        "(lab) root@{host}:~# python func.py",
        "ChatCompletion(id='1', choices=[Choice(finish_reason='tool_calls', index=0, logprobs=None,",
        "message=ChatCompletionMessage(content='I will add.', role='assistant', tool_calls=[",
        "ChatCompletionMessageToolCall(id='0', function=Function(arguments='{{\"a\": 3, \"b\": 5}}',",
        "name='add'), type='function')]))], created={created}, model='internlm2_5-1_8b-chat',",
        "usage=CompletionUsage(completion_tokens=40, prompt_tokens=263, total_tokens=303))",
        "8",
    ),
    ("CPU {cpu}%  RAM {ram} / 72 GB  GPU-1: 30% Nvidia A100 0%  VRAM 11368 / 24566 MiB 46.28%",),
)


def write_report(folder: Path, *, pictures: int, seed: int) -> Path:
    """A report of so many pictures, no two of which are equal."""
    chance = random.Random(seed)
    (folder / "images").mkdir(parents=True)
    lines = [f"# Report {seed}", "", "W4A16 quantizes the weights; the activations stay in 16 bits.", ""]
    for number in range(pictures):
        _draw(folder / "images" / f"{number}.png", _TERMINALS[number % len(_TERMINALS)], chance)
        lines += [f"## Step {number}", "", f"![](images/{number}.png)", ""]
    (folder / "report.md").write_text("\n".join(lines), encoding="utf-8")
    return folder


def _draw(path: Path, lines: tuple[str, ...], chance: random.Random) -> None:
    from PIL import Image, ImageDraw, ImageFont

    values = {
        "host": f"studio-{chance.randrange(10**6):06}",
        "pid": chance.randrange(1000, 90_000),
        "created": chance.randrange(1_730_000_000, 1_740_000_000),
        "cpu": chance.randrange(1, 9999) / 100,
        "ram": chance.randrange(100, 7200) / 100,
    }
    font = ImageFont.load_default(14)
    # About as much on it as on a screenshot of a terminal window.
    screen = [line.format(**values) for line in lines] + [f"[{n}] some more output of it" for n in range(8)] * (
        len(lines) > 1
    )
    made = Image.new("RGB", (900, 20 * len(screen) + 16), (24, 24, 24))
    for number, line in enumerate(screen):
        ImageDraw.Draw(made).text((8, 8 + 20 * number), line, font=font, fill=(220, 220, 220))
    made.save(path)


class _Watch:
    """The memory of this process and its workers, looked at twice a second."""

    def __init__(self) -> None:
        self.own: list[int] = []
        self.workers: list[int] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        me = psutil.Process()
        while not self._ended.wait(0.5):
            self.own.append(me.memory_info().rss >> 20)
            total = 0
            for child in me.children(recursive=True):
                try:
                    total += child.memory_info().rss >> 20
                except psutil.Error:
                    continue
            self.workers.append(total)

    def grown(self) -> dict[str, int]:
        """The most of each quarter of the run, in MiB."""
        quarter = max(1, len(self.own) // 4)
        parts = {"grader": self.own, "workers": self.workers}
        return {
            f"{name}_mib_quarter_{number + 1}": max(seen[number * quarter : (number + 1) * quarter], default=0)
            for name, seen in parts.items()
            for number in range(4)
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=1, help="reports (%(default)s)")
    parser.add_argument("--pictures", type=int, default=15, help="of each (%(default)s)")
    parser.add_argument("--workers", type=int, help="at a time (by the machine)")
    options = parser.parse_args()
    wait_patiently()
    with tempfile.TemporaryDirectory(prefix="lab3-bench-") as folder:
        os.environ["LAB3_CACHE"] = str(Path(folder) / "cache")  # nothing was read before
        paths = [
            write_report(Path(folder) / f"r{number:03}", pictures=options.pictures, seed=number)
            for number in range(options.count)
        ]
        began, watch = time.monotonic(), _Watch()
        batch = grade_batch(paths, Path(folder) / "out", plan=make_plan(), workers=options.workers)
        seconds = time.monotonic() - began
        watch.end()
        again = time.monotonic()
        grade_batch(paths, Path(folder) / "out", plan=make_plan(), workers=options.workers)
        figures = {
            "reports": len(batch.reports),
            "pictures": options.count * options.pictures,
            "seconds": round(seconds, 1),
            "seconds_again": round(time.monotonic() - again, 1),
            "seconds_each": round(seconds / max(len(batch.reports), 1), 2),
            "not_graded": sum(each.status in ("infra_error", "timeout") for each in batch.reports),
            "like_pictures": sum(each.kind in ("same_picture", "like_picture") for each in batch.likenesses),
            **watch.grown(),
        }
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
