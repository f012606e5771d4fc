"""How many figures of screenshots lab3 reads right, and how long a picture takes.

    python -m bench.report_ocr [--pictures 60] [--seed 1] [--show]

Terminals are drawn in three fonts, ten to eighteen pixels, dark and light, scaled, cut and saved as JPEG. A figure is a
run of digits and points; it is right if it stands in its place among the others of the picture.
"""

from __future__ import annotations

import argparse
import io
import random
import re
import resource
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lab3.reports.lines import repaired
from lab3.reports.ocr_rows import read_rows

_FONTS = {
    "DejaVu": ("/usr/share/fonts/truetype/dejavu/DejaVuSansMono.ttf", 0),
    "DejaVu bold": ("/usr/share/fonts/truetype/dejavu/DejaVuSansMono-Bold.ttf", 0),
    "Liberation": ("/usr/share/fonts/truetype/liberation/LiberationMono-Regular.ttf", 0),
    "WenQuanYi": ("/usr/share/fonts/truetype/wqy/wqy-microhei.ttc", 1),
}
_DARK = (((24, 24, 24), (204, 204, 204)), ((12, 12, 12), (255, 255, 255)), ((0, 43, 54), (131, 148, 150)))
_LIGHT = (((255, 255, 255), (0, 0, 0)), ((253, 246, 227), (88, 110, 117)), ((240, 240, 240), (51, 51, 51)))
_FIGURE = re.compile(r"\d+(?:\.\d+)*")


@dataclass(frozen=True)
class Drawn:
    """A picture, what it says, and how it was drawn."""

    kind: str
    picture: Image.Image
    lines: Sequence[str]
    how: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--pictures", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show", action="store_true", help="print what is read wrong")
    asked = parser.parse_args()
    right: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    began, cpu, worst = time.monotonic(), time.process_time(), 0.0
    for drawn in draw(asked.pictures, asked.seed):
        start = time.monotonic()
        lines, _ = read_rows(np.asarray(drawn.picture.convert("RGB")))
        worst = max(worst, time.monotonic() - start)
        wanted, got = _figures(drawn.lines), _figures([repaired(line.text) for line in lines])
        matcher = SequenceMatcher(None, wanted, got, autojunk=False)
        right[drawn.kind] += sum(block.size for block in matcher.get_matching_blocks())
        whole[drawn.kind] += len(wanted)
        if asked.show:
            for what, first, last, start_got, end_got in matcher.get_opcodes():
                if what != "equal":
                    print(f"  {drawn.kind}, {drawn.how}: {wanted[first:last]} read as {got[start_got:end_got]}")
    for kind in whole:
        print(f"{kind:12} {right[kind]:5} of {whole[kind]:5} figures  {100 * right[kind] / whole[kind]:6.2f}%")
    print(f"{'all':12} {right.total():5} of {whole.total():5} figures  {100 * right.total() / whole.total():6.2f}%")
    seconds, used = time.monotonic() - began, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    mean, used_mean = seconds / asked.pictures, used / asked.pictures
    print(f"{mean:.2f} s a picture ({used_mean:.2f} s of CPU), {worst:.2f} s at most; {peak} MiB")


def draw(count: int, seed: int) -> Iterator[Drawn]:
    """`count` pictures, the same for the same seed."""
    chance = random.Random(seed)
    for number in range(count):
        kind, lines = _screens(chance)[number % len(_KINDS)]
        font, size = chance.choice(list(_FONTS)), chance.choice((10, 11, 12, 13, 14, 16, 18))
        scale, dark = chance.choice((1, 1, 1, 1.25, 1.5, 2)), chance.random() < 0.65
        quality, cut = chance.choice((None, None, 95, 85, 75, 60)), chance.random() < 0.3
        paper, ink = chance.choice(_DARK if dark else _LIGHT)
        picture = _draw(lines, font, size, paper, ink, chance.choice((1.2, 1.3, 1.45)))
        picture = picture.resize(
            (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC
        )
        if cut:
            edge = int(4 * scale)
            picture = picture.crop((edge, int(2 * scale), picture.width - edge, picture.height - edge))
        if quality:
            saved = io.BytesIO()
            picture.save(saved, "JPEG", quality=quality)
            picture = Image.open(saved)
        yield Drawn(kind, picture, lines, f"{font} {size} px ×{scale}, {'dark' if dark else 'light'}, JPEG {quality}")


def _draw(
    lines: Sequence[str], font: str, size: int, paper: tuple[int, int, int], ink: tuple[int, int, int], leading: float
) -> Image.Image:
    path, index = _FONTS[font]
    letters = ImageFont.truetype(path, size, index=index)
    wide, high = letters.getlength("M"), int(size * leading)
    picture = Image.new("RGB", (int(max(map(len, lines)) * wide) + 16, high * len(lines) + 10), paper)
    pen = ImageDraw.Draw(picture)
    for row, line in enumerate(lines):
        for column, letter in enumerate(line):
            pen.text((8 + column * wide, 5 + row * high), letter, font=letters, fill=ink)
    return picture


_KINDS = ("server", "du", "nvidia-smi", "completion", "quantizing", "queries")


def _screens(chance: random.Random) -> list[tuple[str, list[str]]]:
    any_of = chance.randint
    used, total, pid = any_of(3000, 20000), chance.choice((24576, 24566, 40960, 81559, 24564)), any_of(1000, 99999)
    server = [
        f"(lmdeploy) root@node-{any_of(1000, 99999)}:~# lmdeploy serve api_server \\",
        ">     /root/models/internlm2_5-1_8b-chat-w4a16-4bit \\",
        ">     --model-format awq \\",
        f">     --cache-max-entry-count 0.{any_of(1, 9)} \\",
        ">     --quant-policy 4 \\",
        f">     --server-port {any_of(10000, 60000)} \\",
        ">     --tp 1",
        "HINT:    Please open http://0.0.0.0:23333 in a browser for detailed api usage!!!",
        f"INFO:     Started server process [{pid}]",
        "INFO:     Uvicorn running on http://0.0.0.0:23333 (Press CTRL+C to quit)",
    ]
    names = ("internlm2_5-1_8b-chat", "internlm2_5-1_8b-chat-w4a16-4bit", "internlm2-chat-20b", "Qwen2-7B-Instruct")
    sizes = [f"{chance.uniform(0.5, 9.9):.1f}" if chance.random() < 0.6 else str(any_of(10, 99)) for _ in range(8)]
    folders = [f"(base) root@dev-{any_of(10, 999)}:/root/models# du -sh *"]
    folders += [f"{size}G".ljust(8) + names[number % 4] for number, size in enumerate(sizes)]
    table = [
        f"| NVIDIA-SMI 535.{any_of(10, 99)}.05    Driver Version: 535.54.05    CUDA Version: 12.2     |",
        "|-------------------------------+----------------------+----------------------+",
        "|   0  NVIDIA A100-SXM...  On   | 00000000:89:00.0 Off |                    0 |",
        f"| N/A   {any_of(30, 70)}C    P0    {any_of(50, 300):3}W / 400W |  {used:5}MiB / {total}MiB |"
        f"    {any_of(0, 99):3}%      Default |",
        "+-------------------------------+----------------------+----------------------+",
        f"|    0   N/A  N/A   {pid:7}      C   ...vs/lmdeploy/bin/python    {used - 6:6}MiB |",
    ]
    a, b, prompt, completion = any_of(1, 99), any_of(1, 99), any_of(200, 400), any_of(20, 90)
    answer = (
        f"ChatCompletion(id='{any_of(1, 9)}', choices=[Choice(finish_reason='tool_calls', index=0, logprobs=None, "
        f"message=ChatCompletionMessage(content='First the sum of {a} and {b}.', refusal=None, role='assistant', "
        "function_call=None, tool_calls=[ChatCompletionMessageToolCall(id='0', function=Function("
        f"arguments='{{\"a\": {a}, \"b\": {b}}}', name='add'), type='function')]))], "
        f"created=17{any_of(20000000, 39999999)}, model='/root/models/internlm2_5-7b-chat', "
        "object='chat.completion', service_tier=None, system_fingerprint=None, usage=CompletionUsage("
        f"completion_tokens={completion}, prompt_tokens={prompt}, total_tokens={prompt + completion}))"
    )
    width = chance.choice((80, 100, 120, 132))
    cut = [answer[start : start + width] for start in range(0, len(answer), width)]
    completions = ["root@node:~# python demo.py", *cut, str(a + b)]
    quantizing = ["Loading checkpoint shards: 100%|##########| 2/2 [00:04<00:00,  2.12s/it]"]
    quantizing += [f"Move model.layers.{number} to CPU." for number in range(4)]
    quantizing += [
        f"model.layers.{number}, samples: 128, max gpu memory: {chance.uniform(4, 9):.2f} GB" for number in range(6)
    ]
    queries = [
        "memory.used [MiB], memory.total [MiB]",
        f"{used} MiB, {total} MiB",
        f"[0] NVIDIA A100-SXM4-80GB | {any_of(30, 60)}°C, {any_of(0, 99):3} % | {used:5} / {total} MB | r({used - 9}M)",
    ]
    return list(zip(_KINDS, (server, folders, table, completions, quantizing, queries), strict=True))


def _figures(lines: Sequence[str]) -> list[str]:
    return _FIGURE.findall("\n".join(lines))


if __name__ == "__main__":
    main()
