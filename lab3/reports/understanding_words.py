"""The words in which students speak of W4A16 and of KV cache quantization, as tokens with a meaning."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from lab3.reports.numbers import as_ascii

# tag → (English words, found as whole words; Chinese, found anywhere). Of several at one place the longest is taken.
_WORDS: dict[str, tuple[str, str]] = {
    # the two methods, and both
    "W": (
        r"w4\s?a16(?: quanti[sz]ation)?|awq|weight[- ]only(?: quanti[sz]ation)?|weight quanti[sz]ation"
        r"|quanti[sz]ing the model",
        r"w4\s?a16\s*(?:量化)?|awq\s*(?:量化)?|(?<![把将对只的仅])(?:仅)?权重量化(?![成为到])|模型量化",
    ),
    "K": (
        r"(?:int[48] )?(?:kv|key[- /]value)[- ]?(?:cache)?s?(?:[- ](?:int ?[48](?:\s?/\s?(?:int)?[48])?|4-bit"
        r"|8-bit))?(?:[- ]quanti[sz]ation)?"
        r"|cache quanti[sz]ation|quantized cache|--quant-policy(?: [48])?",
        r"kv\s*(?:cache|缓存)?\s*(?:(?:int)?[48](?:\s*[/、和或]\s*(?:int)?[48])?)?\s*(?:量化)?"
        r"|键值(?:对)?缓存\s*(?:量化)?|缓存量化|在线kv",
    ),
    "OTHER": (r"w8a8|w8a16|w4a8|smooth_?quant|kv_qparams", r"w8a8|w8a16|w4a8|smooth_?quant"),
    "BOTH": (
        r"both(?: methods| of them| techniques)?|the two(?: methods)?|either(?: method)?|each of them|they",
        r"两者|二者|两种(?:方法|量化|方式|技术)?|这两种(?:方法|量化|方式|技术)?|它们|两个都",
    ),
    "NEITHER": (
        r"neither(?: method| of them| one)?|none of (?:them|the two)",
        r"两者都不|二者都不|两者均不|二者均不|两种.{0,4}都不|两者都无需|二者都无需",
    ),
    # what is quantized
    "WT": (r"weights?|weight (?:matrices|matrix|tensors?)|parameters?", r"权重|参数|模型参数"),
    "ACT": (r"activations?(?: values?)?|intermediate (?:results|values)", r"激活值?|激活张量|中间(?:结果|激活|值)"),
    "KEYS": (
        r"keys?|values?|keys? and values?|k/v|k and v|attention cache|cache|cached tensors?",
        r"键和值|键与值|键、值|键值对?|k\s*和\s*v|key\s*[和、/]\s*value|缓存",
    ),
    "EMB": (
        r"embeddings?(?: layers?| tables?)?|lm[_ -]?head|output (?:layer|head|projection|matrix)|the head"
        r"|vocabulary|norms?|layer ?norms?",
        r"embedding|词嵌入|嵌入层?|词表|lm_head|输出层|输出头|输出矩阵|词向量|归一化层?",
    ),
    "WHOLE": (r"whole|entire|all(?: of)?|every|the full", r"整个|全部|所有|每个|每一个|全体"),
    "MODEL": (
        r"model(?:'s)?(?: size)?|checkpoint|files?|folder|size|disk",
        r"模型(?:大小|体积)?|体积|文件(?:大小)?|大小",
    ),
    "LIN": (r"linear(?: layers?)?|matmul weights|projections?", r"线性层|全连接层"),
    # what is done
    "Q": (
        r"quanti[sz]e[sd]?|quanti[sz]ing|quanti[sz]ation|compress(?:es|ed|ing|ion)?|packed|converts?|converted"
        r"|rounded|stored|stores",
        r"量化|压缩|转(?:换)?[成为]|存储?[成为]",
    ),
    "DEQ": (r"de-?quanti[sz]\w*|converted back|turned back|unpacked", r"反量化|解量化|还原"),
    "APPLY": (
        r"appl(?:y|ies|ied)(?: to)?|targets?|targeting|acts? on|works? on|affects?|concerns?|covers?|changes?"
        r"|touch(?:es)?|is about|object",
        r"针对|用于|应用于|应用到|应用在|作用于|作用在|作用对象|对象|面向|涉及|处理|是对",
    ),
    "LOW": (
        r"(?:int ?4|4[- ]?bits?|four bits|w4|8[- ]?bits?|int ?8)",
        r"4\s*(?:bit|位|比特)|四位|四比特|int\s*4|8\s*(?:bit|位|比特)|int\s*8|低(?:比特|精度|位)",
    ),
    "HI": (
        r"(?:16[- ]?bits?|fp16|bf16|float16|sixteen bits|a16|half[- ]precision|full precision"
        r"|high(?:er)? precision|original precision)",
        r"16\s*(?:bit|位|比特)|fp16|bf16|float16|半精度|全精度|高精度|原精度|原始精度|原来的精度|十六位|浮点",
    ),
    "KEEP": (
        r"stays?|remains?|keeps?|kept|unchanged|left(?: alone)?|still|untouched|the same|constant|(?:does|did"
        r"|do|will)(?:n't| not) change|no change|as (?:it|they) (?:is|are|was|were)",
        r"保持|保留|仍然?|还是|依然|依旧|不变|没变|没有变化|不动|维持|一样|并?(?:不会?|没有?"
        r"|未)(?:发生)?(?:变化|改变)",
    ),
    "AWARE": (
        r"activation[- ]aware|activation (?:statistics|ranges?|distribution|scales?|magnitudes?)"
        r"|(?:based on|according to|by|from|using|looking at|looks at|collects?|observes?|measures?"
        r"|multiplied (?:with|by)|times) (?:the )?activations?",
        r"激活感知|(?:根据|依据|按照?|基于|观察|统计|收集|参考|利用|考虑|通过|分析)(?:了)?激活值?"
        r"|激活值?的?(?:分布|统计|范围|幅度)|(?:与|和|同)激活值?(?:相乘|做?矩阵乘|计算)",
    ),
    # calibration
    "CAL": (
        r"calibrat(?:e|es|ed|ion|ing)(?: data(?:sets?)?| sets?| samples?| steps?)?|data ?sets?",
        r"校准(?:数据集?|集|样本|过程|数据)?|标定(?:数据集?|过程)?|calibration|数据集",
    ),
    "NEED": (
        r"needs?|needed|requires?|required|must(?: be)?|necessary|uses?|used|depends? on|relies on|rely on"
        r"|has to|have to|with|done with",
        r"需要|需|必须|要(?!求|点)|依赖|用到|使用|借助|经过|进行|做",
    ),
    "ONLINE": (
        r"online|on[- ]the[- ]fly|per[- ]token|per[- ]head",
        r"在线(?!kv)|逐\s*token|逐头|per[- ]token|per[- ]head|online",
    ),
    "LIVE": (
        r"dynamic(?:ally)?|at run ?time|during (?:inference|decoding|generation)|while (?:serving|generating)"
        r"|when serving",
        r"动态|实时|运行时|推理时|推理过程中?|推理阶段|推理期间|边推理边|生成时",
    ),
    "OFFLINE": (
        r"offline|ahead of time|beforehand|once|static(?:ally)?|in advance",
        r"离线|事先|预先|提前|静态|一次性",
    ),
    # memory
    "LESS": (
        r"reduc(?:e|es|ed|ing|tion)|lowers?|lowered|lowering|saves?|saved|saving|shrinks?|shrank|smaller|less"
        r"|decreas(?:e|es|ed|ing)|cuts?|drops?|fall|falls|fell|go(?:es)? down",
        r"减少|降低|节省|节约|减小|缩小|缩减|下降|变小|变少|降到|减到|压缩到|减轻|省",
    ),
    "VRAM": (
        r"vram|gpu memory|memory(?: use| usage| consumption| footprint)?|video memory|figure",
        r"显存(?:占用|使用|消耗)?|内存(?:占用|使用|消耗)?|显卡内存",
    ),
    "TOTAL": (r"total|overall|nvidia-smi(?:'s)?|the sum|whole card", r"总(?:的|体|共)?|整体|nvidia-smi|显示的|整张卡"),
    "MORE": (
        r"more (?:\w+ )?(?:tokens?|sequences?|requests?|context|entries|users)|longer (?:contexts?|sequences?"
        r"|conversations?|texts?|prompts?)"
        r"|(?:larger|bigger) batch(?:es)?|(?:two|four|twice|2|4|3\.\d+)(?:x| times)?(?: as many"
        r"| the)? (?:\w+ )?tokens|as many tokens|how many tokens|number of tokens|many more tokens",
        r"(?:更多|更大数量|多)的?\s*(?:token|序列|请求|缓存|上下文|并发|kv)|更长的?\s*(?:上下文|序列|文本|对话"
        r"|会话)|更大的?\s*(?:batch|批)|(?:2|4|两|四|几|数)\s*倍(?:左右)?的?\s*token"
        r"|更高的?并发|token\s*数(?:量)?|(?:存|放|装|容纳|缓存)(?:下|得下)?更多|更多\s*(?:的)?token",
    ),
    "RATIO": (
        r"--?-?cache-max-entry-count|cache_max_entry_count|ratio|pre-?allocat\w+|fixed (?:share|part|fraction)"
        r"|share of the (?:free )?memory|pool",
        r"cache[-_]max[-_]entry[-_]count|比例|预分配|固定(?:的)?(?:比例|大小)|缓存池",
    ),
    "DECIDES": (
        r"decide[sd]?|determined?s?|set by|depends on|governed by|comes from|given by|because of",
        r"决定|取决于|由.{0,3}控制|来自|控制|主要是因为|是因为",
    ),
    "QUARTER": (
        r"quarter(?:s|ed)?|1/4|one fourth|25 ?%|75 ?%|4x|four times|4 times|3/4",
        r"四分之一|1/4|25%|75%|[四4]倍|3/4|四分之三",
    ),
    # how it is said
    "NEG": (
        r"not|isn't|aren't|doesn't|don't|won't|didn't|cannot|can't|no(?! doubt| matter)|without|never|nor"
        r"|nothing|none|free of|instead of|rather than|as opposed to",
        r"不像(?=.{0,16}(?:那样|一样|需要))|不(?!同|仅|但|只|过|断|变|动|一样|光|少|管|错|太)|无需|无须|毋需"
        r"|不必|不用|没有(?!变)|没(?!有|变)|未|并非|无(?=校准|标定|任何)|而非|而不是|免(?=校准|标定|去)",
    ),
    "ONLY": (r"(?<!not )(?:only|just|merely|solely|alone|purely)", r"(?<!不)(?:只有?|仅仅?|单单)(?!能|要)"),
    "EXCEPT": (r"except(?: for)?|apart from|other than|excluding|besides", r"除了?|除外|以外|之外"),
    "DIFF": (r"no difference|the same thing|identical", r"没有区别|没有差别|没什么区别|完全一样|是一回事|完全相同"),
    "UNLIKE": (
        r"unlike|compared (?:to|with)|in contrast to|than|as in|whereas for",
        r"不同于|相比于?|比起|相较于?|区别于|与之?相比|不像",
    ),
    "HEDGE": (
        r"may|might|perhaps|probably|possibly|maybe|not sure|i guess|seems?|could|theoretically|in theory"
        r"|roughly|about|nearly|almost|approximately",
        r"可能|也许|或许|不确定|不太清楚|猜|应该(?=是)|好像|似乎|理论上|大约|大概|约(?!束|定)|接近|差不多|近似|几乎",
    ),
}

_ASK = re.compile(
    r"[?？]|吗[。，\s]*$|是否|是不是|为什么|为何|什么是|有什么|有何|\bwhether\b|^\W*(?:why|what|how|which|does"
    r"|do|is|are)\b",
    re.I | re.A,
)
_OTHERS_SAY = re.compile(
    r"误区|误解|误认为|误以为|以为|有人(?:说|认为|觉得)|很多人|不少人|常见(?:的)?错误|错误的?(?:说法|理解|观点)"
    r"|说法(?:是)?(?:错|不对)"
    r"|旧版|老版本|早期|以前的|从前|如果|假如|假设|要是|网上"
    r"|\bmyth\b|misconception|\bsome (?:people )?(?:say|think|believe|claim)|\bpeople (?:say|think|believe)"
    r"|\bwrong\b|\bincorrect\b|\bmistak(?:e|en)\b"
    r"|\bthought\b|\bif\b|\bolder\b|\bold(?:er)? versions?\b|\bearlier\b|\bformerly\b|\bpreviously\b"
    r"|\bused to\b|kv_qparams|\bone might\b|\bunlike what\b|\bwould\b",
    re.I | re.A,
)
_BACK = re.compile(
    r"其实|实际上|事实上|但(?!不)|然而|不过|现在|\bbut\b|\bactually\b|\bin fact\b|\bhowever\b|\bnow\b|\btoday\b"
    r"|\bin reality\b",
    re.I | re.A,
)


@dataclass(frozen=True)
class Token:
    """A word with a meaning, and where it stands in its clause."""

    tag: str
    text: str
    start: int


def tokens(clause: str) -> tuple[Token, ...]:
    """The known words of a clause, in their order."""
    found: list[Token] = []
    at = 0
    lowered = clause.lower()
    while at < len(lowered):
        best: tuple[int, str] | None = None
        for tag, pattern in _patterns():
            match = pattern.match(lowered, at)
            if match and match.end() > at and (best is None or match.end() > best[0]):
                best = (match.end(), tag)
        if best is None:
            at += 1
            continue
        found.append(Token(best[1], clause[at : best[0]], at))
        at = best[0]
    return tuple(found)


def plain(text: str) -> str:
    """Full-width forms as ASCII, and spaces for Markdown's marks; each character in its place."""
    return re.sub(r"[*`]|__", lambda match: " " * len(match[0]), as_ascii(text))


@dataclass(frozen=True)
class Sentence:
    """A sentence, as it is read and as it is written."""

    text: str
    written: str


def sentences_of(text: str) -> tuple[Sentence, ...]:
    """The sentences of a text; a line is one, too."""
    read = _unwrapped(plain(text))
    cuts = [match.end() for match in re.finditer(r"[。!?;]+|\.(?=\s|$)|\n+", read)]
    found = []
    for start, end in pairwise([0, *cuts, len(read)]):
        if read[start:end].strip():
            found.append(Sentence(read[start:end].strip(), text[start:end].strip()))
    return tuple(found)


def _unwrapped(text: str) -> str:
    """Lines that an editor broke in the middle of a sentence, joined again; the length stays."""
    lines = text.split("\n")
    joined = lines[0]
    for before, line in pairwise(lines):
        ended = before.rstrip()
        latin = re.search(r"[a-z0-9,'\"]$", ended) and re.match(r"\s*[a-z(0-9]", line) and len(ended) > 40
        broken = len(ended) > 60 and not re.search(r"[。.!?:;,]$", ended) and not re.match(r"\s*(?:[-*•\d]|$)", line)
        joined += (" " if latin or broken else "\n") + line
    return joined


def clauses_of(sentence: str) -> tuple[str, ...]:
    """The clauses of a sentence: a comma or a conjunction that begins another statement parts them."""
    sentence = re.sub(r"\((?:[a-z ]{1,18}|[\u4e00-\u9fff]{1,3})\)", "", sentence, flags=re.I)  # a gloss: 权重(weight)
    parts = re.split(
        r"[,，;；:：()（）—]|\s-+\s|(?=而(?!且|不是|非|减|降|变|增|下|影响|导致|改))|(?=但是?)|\s(?=(?:while"
        r"|whereas|but|although|though|because|since|so that)\s)",
        sentence,
    )
    return tuple(each.strip() for each in parts if each and each.strip(" -—。."))


def is_question(text: str) -> bool:
    return bool(_ASK.search(text))


def others_say(clause: str) -> bool:
    """Whether a clause tells what others think, what was once, or what would be."""
    return bool(_OTHERS_SAY.search(clause))


def comes_back(clause: str) -> bool:
    """Whether a clause returns to what the writer holds."""
    return bool(_BACK.search(clause))


@lru_cache(maxsize=1)
def _patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    found = []
    for tag, (english, chinese) in _WORDS.items():
        found.append((tag, re.compile(rf"(?<![a-z0-9])(?:{english})(?![a-z0-9])")))
        found.append((tag, re.compile(chinese)))
    return tuple(found)
