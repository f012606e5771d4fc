"""What the text around a picture or command says it is about: the words of the lab's steps in Chinese and English."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from lab3.reports.model import Block, Place, Report

_BEFORE = re.compile(
    r"量化(?:之|以)?前(?!后)|未(?:经)?(?:进行)?量化|没有?(?:经过|进行)?量化|不量化|非量化|无量化|原始|原模型"
    r"|原版|原生模型|全精度|半精度"
    r"|\bbefore\b(?![^.,;\n]{0,20}\b(?:and|/)\s*after)|\bbaseline\b|un-?quanti[sz]ed|not quanti[sz]ed"
    r"|non-?quanti[sz]ed"
    r"|without (?:any )?quanti[sz]|\boriginal\b|\b(?:fp|bf|float)16\b|full precision|half precision|\bbase model\b",
    re.I | re.A,
)
_AFTER = re.compile(
    r"(?<!未)(?<!不)(?<!没有)(?<!没)量化(?:之|以)?后|量化(?:好|完)|已量化|w4a16|\bawq\b|4[\s_-]?bits?\b|四位|4位"
    r"|(?<!un)(?<!not )(?<!non-)\bquanti[sz]ed\b|\bafter\b",
    re.I | re.A,
)
_BOTH = re.compile(
    r"量化(?:之|以)?前后|前后对比|before (?:and|/|vs\.?) ?after|前[和与跟、/]后|对比|相比|相较|[比较]量化前"
    r"|\bthan\b|\bcompared\b",
    re.I | re.A,
)
_SERVER = re.compile(
    r"api[\s_-]?server|\bapi\b|服务(?!器显存)|\bserv(?:e|er|ing)\b|kv[\s_-]?cache|\bkv\b|gradio|网页|浏览器|web",
    re.I | re.A,
)
_CHAT = re.compile(
    r"lmdep\w+\s+chat|\bchat\b(?!ting)(?![\s_-]*completion)|命令行对话|终端对话|命令行.{0,4}(?:对话|聊天)", re.I | re.A
)
_TOOLS = re.compile(
    r"function[\s_-]*call|funct?ion[\s_-]*cal|函数调用|工具调用|调用(?:函数|工具)|tool[\s_-]*call|\btools?\b"
    r"|\badd\b.{0,12}\bmul",
    re.I | re.A,
)
_TOPICS: dict[str, re.Pattern[str]] = {
    "memory": re.compile(r"显存|vram|gpu[\s_-]?mem|nvidia-smi|studio-smi|\bmemory\b|\bsmi\b|占用", re.I | re.A),
    "quantize": re.compile(
        r"auto_awq|(?:执行|启动|进行|开始|运行|模型).{0,6}量化|量化(?:命令|过程|模型|日志|脚本|:|：|$)|w4a16\s*量化"
        r"|quanti[sz](?:e|ing|ation)\b|\bawq\b",
        re.I | re.A,
    ),
    "sizes": re.compile(
        r"文件(?:夹)?大小|模型大小|大小对比|体积|du\s+-|磁盘|size|\bdisk\b|\bdu\b|储存|存储空间|大小", re.I | re.A
    ),
    "serve": re.compile(
        r"(?:启动|开启|部署|运行).{0,16}(?:服务|api|server)|api[\s_-]?server|\bserv(?:e|er|ing)\b", re.I | re.A
    ),
    "conversation": re.compile(
        r"对话|聊天|交互|问答|浏览器|网页|conversation|\bchat(?:ting)?\b|\bdialog|\banswers?\b|\bbrowser\b"
        r"|\bclient\b|\bweb\b",
        re.I | re.A,
    ),
    "output": re.compile(r"输出|结果|运行|result|output|调用|\bcalls?\b", re.I | re.A),
    "script": re.compile(r"脚本|代码|\bcode\b|\bscript\b|\.py\b", re.I | re.A),
}
_FAILED = re.compile(
    r"没有?(?:能)?成功|未(?:能)?成功|失败|报错|出错|爆显存|显存不足|显存不够|跑不(?:起来|通|动|了)|启动不了"
    r"|起不来|无法(?:启动|运行|完成|加载)"
    r"|没有?(?:能)?(?:跑通|完成|调用|做出来)|未(?:能)?(?:完成|启动|实现)|out of memory|\boom\b|\bfail(?:s|ed"
    r"|ure|ing)?\b"
    r"|did(?:n't| not) (?:work|start|succeed|call)|does(?:n't| not) (?:work|start)|could(?:n't| not) (?:start"
    r"|finish|get|make|run)"
    r"|not able to|unable to|can(?:'t|not) (?:start|run|load)|\bcrash(?:es|ed)?\b|without success|unsuccessful",
    re.I | re.A,
)
_MENDED = re.compile(
    r"解决|修复|重新|再次|后来|换(?:了|成)|改(?:为|成|用|了)|之后(?:就)?(?:成功|好了)|最终成功|如果|若|可能会"
    r"|避免|防止|否则|不会"
    r"|fixed|solved|then it (?:worked|started)|works now|second (?:try|attempt)|retry|retried|\bif\b|otherwise"
    r"|\bavoid|\bwould\b"
    r"|without (?:any )?(?:error|failure)|no (?:error|failure)",
    re.I | re.A,
)


@dataclass(frozen=True, kw_only=True)
class Around:
    """The words near a block: `near` directly before it and its own, `far` the headings above; the nearest first."""

    near: tuple[str, ...]
    far: tuple[str, ...]

    @property
    def quantized(self) -> bool | None:
        """Whether the text says that it is after or before quantization; the nearest text that says so decides."""
        for text in (*self.near, *self.far):
            before, after = bool(_BEFORE.search(text)), bool(_AFTER.search(text))
            if before != after and not _BOTH.search(text):
                return after
        return None

    @property
    def program(self) -> str:
        """ "chat" or "server", empty where the text does not say."""
        for text in (*self.near, *self.far):
            chat, server = bool(_CHAT.search(_NAMES.sub("", text))), bool(_SERVER.search(text))
            if chat != server:
                return "chat" if chat else "server"
        return ""

    @property
    def topics(self) -> frozenset[str]:
        """The steps that the nearest text speaks of, if it speaks of any."""
        for text in (*self.near, *self.far):
            found = frozenset(name for name, words in _TOPICS.items() if words.search(_NAMES.sub("", text)))
            if found:
                return found
        return frozenset()

    @property
    def tools(self) -> bool:
        return any(_TOOLS.search(text) for text in (*self.near[:2], *self.far))


_NAMES = re.compile(
    r"intern\w*[\s_-]?lm[\w.-]*?-chat[\w.-]*|[\w./~-]*-chat[\w./-]*", re.I | re.A
)  # "chat" in a model's name
_TEXTS = ("paragraph", "list_item", "heading", "quote", "table")


def around(report: Report, number: int) -> Around:
    """The words around block `number`: its own text, and what stands between it and the picture before.

    Pictures in a row share what stands before the first. A text directly below, up to the next picture, counts only
    where nothing stands before.
    """
    block = report.blocks[number]
    own = [block.text] if block.kind != "code" and block.kind != "output" else []
    if block.picture is not None:
        own += [block.picture.alt, _file_words(block.picture.target)]
    before = _texts_before(report, number)
    near = (
        [*before, *own] if any(before) or any(each for each in own if len(each) > 3) else _texts_after(report, number)
    )
    return Around(near=tuple(reversed(near)), far=tuple(reversed(block.section)))


def around_cell(report: Report, place: Place) -> Around:
    """The words around something that stands in a table: the heads of its row and column, then those of the table."""
    block = report.blocks[place.block]
    whole = around(report, place.block)
    found = _cell_of(block, place)
    if found is None:
        return whole
    row, column = found
    heads = [block.rows[row][0], block.rows[0][column] if row and column < len(block.rows[0]) else ""]
    near = " ".join(each for each in dict.fromkeys(heads) if each and place.quote not in each)
    return Around(near=(near, *(text for text in whole.near if text != block.text)), far=whole.far)


def _cell_of(block: Block, place: Place) -> tuple[int, int] | None:
    """Row and column of what is quoted, of several like cells the one in its line; None where it stands in none."""
    cells = [
        (number, column)
        for number, row in enumerate(block.rows)
        for column, cell in enumerate(row)
        if place.quote.strip() and place.quote.strip() in cell
    ]
    at = place.line - block.line if place.line is not None and block.line is not None else None
    return next((each for each in cells if each[0] == at), cells[0] if cells else None)


def failing(text: str) -> str:
    """The sentence that honestly tells of a failure, empty without one, or where it was mended."""
    for sentence in re.split(r"(?<=[。！!；;\n])|(?<=\.)\s", text):
        if _FAILED.search(sentence) and not _MENDED.search(sentence):
            return sentence.strip()
    return ""


def speaks_of_tools(text: str) -> bool:
    """Whether a text is on function calls."""
    return bool(_TOOLS.search(text))


def _texts_before(report: Report, number: int) -> list[str]:
    at = number - 1
    while at >= 0 and report.blocks[at].kind == "image":
        at -= 1
    found: list[str] = []
    while at >= 0 and len(found) < 4:
        block = report.blocks[at]
        if block.kind == "image" or (found and block.kind == "heading"):
            break
        if block.kind in _TEXTS:
            found.append(block.text[-400:])
        if block.kind == "heading":
            break
        at -= 1
    return list(reversed(found))


def _texts_after(report: Report, number: int) -> list[str]:
    for block in report.blocks[number + 1 : number + 3]:
        if block.kind in ("image", "heading", "code"):
            break
        if block.text.strip():
            return [block.text[:300]]
    return []


def _file_words(target: str) -> str:
    stem = PurePosixPath(target.split("?")[0].replace("\\", "/")).stem
    return re.sub(r"[_\-%]+", " ", stem) if re.search(r"[a-z]{3}|[\u4e00-\u9fff]", stem) else ""
