"""What reports share: pictures, passages and links, and above all what is not to be taken for shared."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFont

from lab3.reports.model import Block, CompletionSeen, Likeness, Picture, Place, Recognised, Report, TextLine
from lab3.reports.provenance import ReportPrint, fingerprint, likenesses
from lab3.reports.provenance_tutorial import tutorial_blocks, tutorial_of
from lab3.reports.provenance_urls import owner_of

SERVER = (
    "(lmdeploy) root@{host}:~# lmdeploy serve api_server \\",
    "    /root/models/internlm2_5-1_8b-chat-w4a16-4bit --model-format awq --quant-policy 4",
    "HINT:    Please open http://0.0.0.0:23333 in a browser for detailed api usage!!!",
    "INFO:     Started server process [{pid}]",
    "INFO:     Application startup complete.",
    "INFO:     Uvicorn running on http://0.0.0.0:23333 (Press CTRL+C to quit)",
)
CALLS = (
    "ChatCompletion(id='1', choices=[Choice(finish_reason='tool_calls', index=0, logprobs=None,",
    "tool_calls=[Function(arguments='{{\"a\": 3, \"b\": 5}}', name='add')], created={created},",
    "usage=CompletionUsage(completion_tokens=40, prompt_tokens=263, total_tokens=303))",
)
BAR = ("CPU {cpu}%   GPU-1: 30% Nvidia A100 0%", "RAM {ram} / 72 GB   VRAM {used} / 24566 MiB {percent}%")


@dataclass
class World:
    """Reports with pictures whose text is known as it was drawn."""

    folder: Path
    files: dict[str, Path] = field(default_factory=dict)
    seen: dict[str, Recognised] = field(default_factory=dict)

    def terminal(self, *lines: str, size: int = 14, dark: bool = True, **values: object) -> Image.Image:
        font = ImageFont.load_default(size)
        ground, ink = ((24, 24, 24), (220, 220, 220)) if dark else ((250, 250, 250), (40, 40, 40))
        made = Image.new("RGB", (60 * size, (len(lines) + 1) * size * 3 // 2), ground)
        for number, line in enumerate(lines):
            at = (size // 2, size // 2 + number * size * 3 // 2)
            ImageDraw.Draw(made).text(at, line.format(**values), font=font, fill=ink)
        made.info["text"] = [line.format(**values) for line in lines]
        return made

    def shown(self, made: Image.Image, *, quality: int | None = None, text: list[str] | None = None) -> Block:
        """The picture's block; its text is what was drawn unless OCR is to have read something else."""
        content = io.BytesIO()
        made.save(content, *(("PNG",) if quality is None else ("JPEG",)), **({"quality": quality} if quality else {}))
        digest = hashlib.sha256(content.getvalue()).hexdigest()
        path = self.folder / digest
        path.write_bytes(content.getvalue())
        self.files[digest] = path
        lines = tuple(TextLine(each) for each in (text if text is not None else made.info["text"]))
        self.seen[digest] = Recognised(digest=digest, width=made.width, height=made.height, lines=lines)
        return Block(kind="image", text="", picture=Picture(target=f"{digest[:6]}.png", path=path, digest=digest))

    def likenesses(self, *, tutorials=(), **reports: list[Block]) -> tuple[Likeness, ...]:
        prints = {name: self.print(*blocks) for name, blocks in reports.items()}
        return likenesses(prints, tutorials=tutorials, file_of=lambda _, digest: self.files.get(digest))

    def print(self, *blocks: Block) -> ReportPrint:
        made = fingerprint(report(*blocks), self.seen, tuple(self.completions(*blocks)))
        return ReportPrint.from_dict(made.to_dict())

    def completions(self, *blocks: Block) -> Iterator[CompletionSeen]:
        """What a reader of screens would find of printed answers."""
        for number, block in enumerate(blocks):
            digest = block.picture.digest if block.picture else ""
            lines = [line.text for line in self.seen[digest].lines] if digest in self.seen else [block.text]
            for created in re.findall(r"created=(\d{10})", "".join(lines)):
                place = Place(block=number, quote=created, picture=digest or None)
                yield CompletionSeen(place=place, created=int(created))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def report(*blocks: Block) -> Report:
    return Report(path=Path("r.md"), format="markdown", encoding="utf-8", blocks=tuple(blocks))


def prose(text: str) -> Block:
    return Block(kind="paragraph", text=text)


def linked(url: str) -> Block:
    return Block(kind="image", text="", picture=Picture(target=url, why="not fetched"))


def told(found: tuple[Likeness, ...]) -> list[tuple[str, str, str]]:
    return [(each.kind, each.one, each.other) for each in found]


# --- pictures -----------------------------------------------------------------------------------------------------


def test_one_picture_in_two_reports_is_told_with_the_pair(world):
    bar = world.shown(world.terminal(*BAR, cpu=10.1, ram=4.54, used=11172, percent=45.48))

    (found,) = world.likenesses(a=[prose("x"), bar], b=[bar])

    assert (found.kind, found.one, found.other, found.share) == ("same_picture", "a", "b", 1.0)
    assert [(place.block, place.picture) for place in found.places] == [(1, bar.picture.digest)]
    assert "same picture" in found.what


def test_one_picture_saved_twice_without_loss_is_the_same_by_its_pixels(world):
    made = world.terminal(*SERVER, host="h-002867", pid=50444)
    other = made.quantize(4).convert("RGB")
    other.info["text"] = made.info["text"]
    one = world.shown(made)
    content = io.BytesIO()
    made.save(content, "PNG", compress_level=0)
    digest = hashlib.sha256(content.getvalue()).hexdigest()
    world.files[digest] = world.folder / digest
    world.files[digest].write_bytes(content.getvalue())
    again = Block(kind="image", text="", picture=Picture(target="b.png", path=world.files[digest], digest=digest))

    assert told(world.likenesses(a=[one], b=[again])) == [("same_picture", "a", "b")]


def test_a_picture_for_two_steps_of_a_report_is_told_with_both_places(world):
    bar = world.shown(world.terminal(*BAR, cpu=1, ram=2, used=3, percent=4))
    before, after = (Block(kind="image", text="", picture=bar.picture, section=(name,)) for name in ("Before", "After"))

    (found,) = world.likenesses(a=[before, after])

    assert (found.one, found.other) == ("a", "a")
    assert [place.block for place in found.places] == [0, 1]
    assert "Before, After" in found.what


@pytest.mark.parametrize(
    ("size", "scale", "quality", "dark"),
    [(14, 1.0, 80, True), (14, 0.7, None, True), (14, 1.5, 70, True), (14, 1.0, 60, False), (18, 0.6, 80, False)],
)
def test_a_picture_scaled_or_saved_with_loss_is_like_itself(world, size, scale, quality, dark):
    made = world.terminal(*SERVER, size=size, dark=dark, host="h-002867", pid=50444)
    changed = made.resize((round(made.width * scale), round(made.height * scale)))
    changed.info["text"] = made.info["text"]

    found = world.likenesses(a=[world.shown(made)], b=[world.shown(changed, quality=quality)])

    assert told(found) == [("like_picture", "a", "b")]


@pytest.mark.parametrize(
    ("lines", "one", "other"),
    [
        (SERVER, {"host": "h-002867", "pid": 50444}, {"host": "h-002867", "pid": 50519}),
        (SERVER, {"host": "h-002867", "pid": 50444}, {"host": "h-002861", "pid": 50444}),
        (CALLS, {"created": 1732864148}, {"created": 1732864149}),
        (
            BAR,
            {"cpu": 1.1, "ram": 4.54, "used": 11172, "percent": 45.48},
            {"cpu": 2.8, "ram": 4.4, "used": 11368, "percent": 46.28},
        ),
        (
            BAR,
            {"cpu": 1.1, "ram": 4.54, "used": 11172, "percent": 45.48},
            {"cpu": 1.1, "ram": 4.54, "used": 11178, "percent": 45.48},
        ),
    ],
)
@pytest.mark.parametrize("read", ["right", "alike"])
def test_two_terminals_with_other_figures_are_two_pictures_even_if_ocr_read_them_alike(world, lines, one, other, read):
    first, second = (world.terminal(*lines, **values) for values in (one, other))
    text = first.info["text"] if read == "alike" else None

    found = world.likenesses(a=[world.shown(first)], b=[world.shown(second, text=text)])

    assert not [each for each in found if "picture" in each.what]


def test_a_picture_with_little_on_it_is_like_no_other(world):
    """All who serve one model on one card read the same figure."""
    made = world.terminal("VRAM 11368 / 24566 MiB")
    changed = made.resize((made.width // 2, made.height // 2))
    changed.info["text"] = made.info["text"]

    assert world.likenesses(a=[world.shown(made)], b=[world.shown(changed)]) == ()


def test_empty_pictures_are_told_for_nothing(world):
    blank = Image.new("RGB", (300, 200), "black")
    blank.info["text"] = []
    shown = world.shown(blank)

    assert world.likenesses(a=[shown, shown], b=[shown]) == ()


def test_what_many_reports_of_a_batch_show_is_told_once_for_each_and_not_in_pairs(world):
    logo = world.shown(world.terminal(*SERVER, host="tutorial", pid=1))

    found = world.likenesses(**{name: [logo] if name in "abc" else [prose(name)] for name in "abcdefg"})

    assert told(found) == [("tutorial_picture", name, "this batch") for name in "abc"]
    assert "3 of 7 reports" in found[0].what


def test_a_picture_of_the_tutorial_is_told_as_such(world):
    shown = world.shown(world.terminal(*SERVER, host="tutorial", pid=1))
    tutorial = tutorial_of(report(shown), name="lab.md")

    found = world.likenesses(a=[shown], b=[shown], tutorials=[tutorial])

    assert told(found) == [("tutorial_picture", "a", "lab.md"), ("tutorial_picture", "b", "lab.md")]
    assert tutorial_blocks(report(prose("mine"), shown), [tutorial]) == {1}


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n" + b"\0" * 30])
def test_a_broken_picture_is_compared_by_its_bytes_alone(world, content):
    digest = hashlib.sha256(content).hexdigest()
    (path := world.folder / "broken").write_bytes(content)
    shown = Block(kind="image", text="", picture=Picture(target="x", path=path, digest=digest))

    assert told(world.likenesses(a=[shown], b=[shown])) == [("same_picture", "a", "b")]


def test_a_crop_of_anothers_screenshot_is_found_by_when_its_answer_was_made(world):
    whole = world.terminal(*CALLS, *SERVER, created=1732864148, host="h-002867", pid=50444)
    part = whole.crop((0, 0, whole.width, whole.height // 3))
    part.info["text"] = [*CALLS[:1], "name='add')], cre", "ated=17328", "64148, usage="]

    (found,) = world.likenesses(a=[world.shown(whole)], b=[prose("x"), world.shown(part)])

    assert (found.kind, found.one, found.other) == ("like_picture", "a", "b")
    assert "same second (created=1732864148)" in found.what
    assert "by chance" in found.what


def test_answers_of_other_seconds_are_not_alike(world):
    code = [Block(kind="code", text=f"ChatCompletion(id='1', created=17328641{at}, model='m')") for at in (48, 49)]

    assert world.likenesses(a=[code[0]], b=[code[1]]) == ()


# --- texts --------------------------------------------------------------------------------------------------------

OWN = (
    "我先把模型量化成四比特，再打开缓存量化，显存从二十吉降到十一吉，"
    "其中大部分是因为缓存比例从零点八改成了零点四，而不是权重变小了。"
)
OTHER = (
    "权重在推理时会被还原成半精度再参加计算，所以激活值一直是十六位；"
    "缓存量化则是在线完成的，每个头每个词各有自己的缩放系数，不需要标定。"
)
ENGLISH = (
    "The weights go to four bits while activations stay in half precision, so kernels dequantize a tile at a time."
)


@pytest.mark.parametrize("text", [OWN, ENGLISH])
def test_a_passage_of_another_report_is_told_with_its_place(world, text):
    (found,) = world.likenesses(a=[prose(OTHER), prose(text)], b=[prose(text), prose("别的内容" * 3)])

    assert (found.kind, found.one, found.other) == ("same_text", "a", "b")
    assert [place.block for place in found.places] == [1]
    assert found.share > 0.9


def test_spaces_punctuation_and_width_make_no_difference(world):
    changed = OWN.replace("，", " , ").replace("。", "！\n")

    assert told(world.likenesses(a=[prose(OWN)], b=[prose(changed)])) == [("same_text", "a", "b")]


def test_two_answers_in_their_own_words_are_not_alike(world):
    mine = (
        "我的理解：W4A16 只压缩权重，激活保持 FP16；KV 量化压缩的是注意力缓存，在运行时在线进行，所以无需校准数据集。"
    )

    assert world.likenesses(a=[prose(OTHER)], b=[prose(mine)]) == ()


def test_what_most_of_a_batch_writes_is_the_tutorials_and_counts_for_nobody(world):
    batch = {name: [prose(OWN), prose(f"{name}自己写的一段话" * 8)] for name in "abcdefgh"}

    assert world.likenesses(**batch) == ()


def test_what_stands_in_the_tutorial_is_no_pairs_likeness(world):
    tutorial = tutorial_of(report(prose(f"前言。{OWN}后记。")), name="lab.md")

    found = world.likenesses(a=[prose(OWN)], b=[prose(OWN), prose(OTHER)], tutorials=[tutorial])

    assert told(found) == [("tutorial_text", "a", "lab.md"), ("tutorial_text", "b", "lab.md")]
    assert found[0].share == 1.0
    assert found[1].share < 1.0


def test_the_commands_that_the_lab_says_to_type_are_nobodys(world):
    typed = Block(
        kind="code", text="lmdeploy serve api_server ./m --model-format awq --quant-policy 4 --server-port 23333"
    )

    assert world.likenesses(a=[typed], b=[typed]) == ()


# --- the tutorial's blocks ----------------------------------------------------------------------------------------

LAB = "运行之后可以看到显存占用为 4.6 GB，量化前则是 20.6 GB，两者相差 16 GB，主要来自缓存比例的变化。"
LISTING = (
    "root@studio:~# du -sh /root/models/*\n3.6G /root/models/internlm2_5-1_8b-chat\n"
    "1.5G /root/models/internlm2_5-1_8b-chat-w4a16-4bit"
)


def blocks_of_tutorial(*blocks: Block) -> frozenset[int]:
    lab = tutorial_of(report(prose(LAB), Block(kind="code", text=LISTING)), name="lab.md")
    return tutorial_blocks(report(*blocks), [lab])


def test_a_passage_taken_over_is_the_tutorials(world):
    assert blocks_of_tutorial(prose("我的实验"), prose(LAB)) == {1}


def test_a_passage_with_figures_of_their_own_is_the_students(world):
    assert blocks_of_tutorial(prose(LAB.replace("4.6", "11.1"))) == frozenset()


def test_an_output_taken_over_is_the_tutorials_and_one_of_their_own_is_not(world):
    own = LISTING.replace("studio", "my-machine-17").replace("1.5G", "1.6G")

    assert blocks_of_tutorial(Block(kind="code", text=LISTING), Block(kind="code", text=own)) == {0}


def test_what_is_short_is_anybodys(world):
    assert blocks_of_tutorial(prose("显存占用为 4.6 GB"), Block(kind="output", text="8\n16")) == frozenset()


def test_without_a_tutorial_all_is_the_students(world):
    assert tutorial_blocks(report(prose(LAB)), []) == frozenset()


# --- links --------------------------------------------------------------------------------------------------------

MINE = "https://github.com/Me/lab/raw/main/images/{}.png"
THEIRS = "https://raw.githubusercontent.com/Someone/notes/main/x.png"


def test_a_picture_linked_from_somebody_elses_repository_is_told(world):
    (found,) = world.likenesses(a=[*(linked(MINE.format(number)) for number in range(4)), linked(THEIRS)])

    assert (found.kind, found.one, found.other) == ("borrowed_url", "a", "github.com/someone/notes")
    assert [place.block for place in found.places] == [4]


def test_two_repositories_of_one_owner_are_theirs(world):
    other = "https://github.com/me/other/blob/main/y.png?raw=true"

    assert world.likenesses(a=[*(linked(MINE.format(number)) for number in range(4)), linked(other)]) == ()


def test_hosts_of_pictures_belong_to_nobody(world):
    hosted = "https://img-blog.csdnimg.cn/direct/a{}.png"

    assert world.likenesses(a=[*(linked(MINE.format(number)) for number in range(4)), linked(hosted)]) == ()


def test_one_link_in_two_reports_is_told(world):
    found = world.likenesses(a=[linked(MINE.format(1))], b=[linked(MINE.format(1) + "?raw=true")])

    assert told(found) == [("borrowed_url", "a", "b")]


@pytest.mark.parametrize(
    ("url", "owner"),
    [
        ("https://github.com/A/b/raw/main/x.png", "github.com/a/b"),
        ("https://raw.githubusercontent.com/A/b/main/x.png", "github.com/a/b"),
        ("https://gitee.com/a/b/raw/master/x.png", "gitee.com/a/b"),
        ("https://user-images.githubusercontent.com/1/2.png", ""),
        ("http://[bad", ""),
        ("https://github.com/", ""),
    ],
)
def test_a_link_names_its_owner(url, owner):
    assert owner_of(url) == owner
