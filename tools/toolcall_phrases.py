"""The wording of the training conversations: phrases, stories, names. All of it written for lab3.

Most of it lies in `phrases/`, one wording a line. `[x|y]` stands for one of x and y, at random; `{a}`, `{b}`, `{c}` and
`{d}` are the numbers in the order in which they are spoken, `{P}` and `{Q}` people, `{O}` things, `{S}` a kind of shop.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path

Shape = tuple[str, object, object]  # 0 is the first number spoken, 1 the second and so on
_FOLDER = Path(__file__).with_name("phrases")
_LANGUAGES = ("en", "zh")
_OPERATIONS = ("add", "mul")
_SIGNS: dict[type[ast.operator], str] = {ast.Add: "add", ast.Mult: "mul"}


def _lines(name: str) -> tuple[str, ...]:
    return tuple((_FOLDER / name).read_text(encoding="utf-8").splitlines())


def _pairs(name: str, between: str) -> tuple[tuple[str, str], ...]:
    parts = (line.partition(between) for line in _lines(name))
    return tuple((first, second) for first, _, second in parts)


def shape(expression: str) -> Shape:
    """ "(a + b) * c" as ("mul", ("add", 0, 1), 2)."""

    def read(node: ast.expr) -> object:
        if isinstance(node, ast.Name):
            return "abcd".index(node.id)
        assert isinstance(node, ast.BinOp), expression
        return (_SIGNS[type(node.op)], read(node.left), read(node.right))

    found = read(ast.parse(expression, mode="eval").body)
    assert isinstance(found, tuple), expression
    return found


def _chain(line: str) -> tuple[str, Shape]:
    expression, _, text = line.partition(" :: ")
    return text, shape(expression)


# --- questions ---------------------------------------------------------------------------------------------------

DIRECT = {(made, spoken): _lines(f"direct.{made}.{spoken}.txt") for made in _OPERATIONS for spoken in _LANGUAGES}
# Word problems about positive numbers.
STORIES = {(made, spoken): _lines(f"stories.{made}.{spoken}.txt") for made in _OPERATIONS for spoken in _LANGUAGES}
# Several steps, and the shape of their expression.
CHAINS = {spoken: tuple(map(_chain, _lines(f"chains.{spoken}.txt"))) for spoken in _LANGUAGES}
CHAIN_STORIES = {spoken: tuple(map(_chain, _lines(f"chain_stories.{spoken}.txt"))) for spoken in _LANGUAGES}
EXPRESSION = {spoken: _lines(f"expression.{spoken}.txt") for spoken in _LANGUAGES}
BOTH = {spoken: _lines(f"both.{spoken}.txt") for spoken in _LANGUAGES}
# Calculations that the tools at hand cannot do: they are answered without a call.
UNFIT = {kind: _lines(f"unfit.{kind}.txt") for kind in ("sub", "div", "other")}
# Without any number to calculate with, beside what the model asks itself in its own conversations.
CHAT = {spoken: _lines(f"chat.{spoken}.txt") for spoken in _LANGUAGES}

FILL: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {
        "P": ("Anna", "Ben", "Carla", "Wei", "Li Na", "Omar", "Sofia", "Tom", "Grace", "Hugo", "My sister", "The teacher", "Aisha",
              "Bruno", "Chen", "Daria", "Mr Brown", "Mrs Kim", "My uncle", "The gardener", "Yusuf", "Ingrid", "Kofi", "Xiao Ming",
              "The old man", "Our neighbour", "Priya", "Lucas"),
        "Q": ("David", "Emma", "Farid", "Jun", "Kate", "Leo", "Maria", "Noah", "Ruth", "Zhang Min", "her brother", "Mei", "Pavel",
              "Ms Lopez", "my cousin", "the baker", "Amir", "Olga", "Tariq", "Xiao Hong", "a friend", "the neighbour"),
        "O": ("apples", "books", "coins", "pencils", "stamps", "marbles", "oranges", "cards", "eggs", "flowers", "toys",
              "cookies", "screws", "bottles", "chairs", "stickers", "nuts", "candles", "tomatoes", "bricks", "balloons", "pears",
              "buttons", "cups", "envelopes", "fish", "hats", "keys", "lamps", "muffins", "notebooks", "onions", "photos", "posters",
              "potatoes", "ribbons", "seeds", "shells", "shirts", "spoons", "tickets", "tiles", "towels", "batteries", "parcels",
              "plates", "glasses", "sandwiches", "magazines", "sheets of paper", "toy cars", "light bulbs"),
        "S": ("shop", "market", "bakery", "store", "factory", "bookshop", "supermarket", "kiosk", "flower shop", "garage"),
    },
    "zh": {
        "P": ("小明", "小红", "小刚", "李雷", "妈妈", "爷爷", "王老师", "小丽", "小强", "张叔叔", "奶奶", "陈师傅", "小美", "哥哥", "刘阿姨"),
        "Q": ("小华", "韩梅梅", "弟弟", "爸爸", "小芳", "张阿姨", "小军", "妹妹", "李老师", "小王", "外婆", "表哥"),
        "O": ("苹果", "橘子", "鸡蛋", "铅笔", "本子", "气球", "玩具", "糖果", "杯子", "螺丝", "桃子", "梨", "橡皮", "纽扣", "面包", "碗",
              "灯泡", "书包", "零件", "饼干", "西瓜", "盘子", "风筝", "球"),
    },
}  # fmt: skip

BEFORE: dict[str, tuple[str, ...]] = {
    "en": ("Hi! ", "Hello, ", "Hey, ", "Quick question: ", "A small sum for you: ", "Good morning. ", "I am stuck. ",
           "Use your tools: ", "One more: ", "OK, next: ", "Let's see. ", "Sorry to bother you. ", "My son asked me this. ",
           "I have no calculator here. ", "This is for work. ", "From my homework: ", "Here it comes: ", "So: ", "Hmm. ",
           "Please help me with this one. ", "Hi there, I have a question. ", "Now this: ", "Listen: ", "Good evening! ",
           "I always get this wrong. ", "Next exercise. ", "Puzzle: ", "Dear assistant, ", "Could you help me out? "),
    "zh": ("你好，", "您好！", "请问一下，", "有个问题：", "帮个忙，", "下一题：", "用工具算一下：", "早上好。", "我算不出来。", "打扰了，",
           "孩子问我：", "这是作业题：", "我手边没有计算器。", "接着来：", "听好了：", "再来一道：", "晚上好！", "老师布置的题：", "麻烦看看这道题：",
           "小助手，", "是这样的，"),
}  # fmt: skip
AFTER: dict[str, tuple[str, ...]] = {
    "en": ("[ Use the function {tool}.| Use {tool}.| Call {tool} for it.| Please use the tool {tool}.]",
           "[ Please use the tools.| Use a tool.| Don't do it in your head.| Use the functions you have.| Call what you need.]",
           "[ Thanks!| Thank you.| Please.| I need it for school.| Be quick.| It is important.| No explanation, please.]",
           "[ I need the exact number.| Just the number.| Take your time.| My boss is waiting.| I would be grateful.| Let me know.]"),
    "zh": ("[请使用{tool}函数。|用{tool}工具。|请调用{tool}。]", "[请用工具计算。|不要心算。|请使用工具。|需要什么函数就调用什么。]",
           "[谢谢！|谢谢。|很急。|不用解释。|麻烦了。]", "[我要准确的数字。|只要结果。|不着急。|老板等着要。|告诉我一声。]"),
}  # fmt: skip

ANSWER = {"en": "The answer is {r}.", "zh": "答案是{r}。"}
ANSWERS = {"en": "The answers are {x} and {y}.", "zh": "答案分别是{x}和{y}。"}

# --- tools ---------------------------------------------------------------------------------------------------------

NAME_PREFIX = ("", "", "", "do_", "math_", "my_", "get_", "work_out_", "simple_", "basic_", "int_", "run_")
NAME_CORE = {made: _lines(f"names.{made}.txt") for made in _OPERATIONS}
NAME_SUFFIX = ("", "", "", "_two", "_numbers", "_fn", "_helper", "_values", "_ab", "_op", "_it", "2")
OPAQUE = (
    "tool_{l}",
    "f{d}",
    "func_{l}",
    "op{d}",
    "fn_{l}{d}",
    "{l}{d}",
    "action_{d}",
    "plugin_{l}",
    "skill{d}",
    "api_{l}",
    *("{w}", "{w}", "{w}", "{w}", "{w}_{l}", "{w}{d}", "do_{w}", "{w}_tool"),
)
SYLLABLES = ("ba", "ko", "li", "mu", "ta", "ren", "zo", "shi", "vel", "qua", "dor", "pe", "lan", "fi", "gus", "nor", "we", "hai",
             "jo", "cra", "stu", "bel", "xin", "tor", "mi", "sa")  # fmt: skip
DESCRIPTION = {made: _lines(f"descriptions.{made}.txt") for made in _OPERATIONS} | {
    "sub": ("Subtract {q} from {p}.", "Returns the difference of two numbers.", "两个数相减", "Subtraction of two numbers."),
    "div": ("Divide {p} by {q}.", "Returns the quotient of two numbers.", "两个数相除", "Division of two numbers."),
}  # fmt: skip
SUB_DIV_NAMES = {
    "sub": ("sub", "minus", "subtract_it", "difference"),
    "div": ("div", "divide_by", "quotient", "ratio"),
}
PARAMETERS = (("a", "b"),) * 12 + _pairs("parameters.txt", ",")
PARAMETER_TEXT = _pairs("parameter_texts.txt", "\t")

CITIES = ("Paris", "Beijing", "Cairo", "Lima", "Oslo", "Shanghai", "Berlin", "Nairobi", "Tokyo", "Rome", "Boston", "Delhi",
          "Madrid", "Seoul", "Vienna", "Toronto", "Istanbul", "Bangkok", "Warsaw", "Havana", "Chengdu", "Sydney")  # fmt: skip
WORDS = ("house", "river", "friend", "winter", "bread", "music", "window", "garden", "letter", "stone", "cloud", "bird",
         "mountain", "teacher", "bicycle", "dream", "candle", "forest", "clock", "island", "horse", "mirror", "city")  # fmt: skip


def _other(line: str) -> tuple[str, str, dict[str, tuple[str, str]], tuple[str, ...], tuple[str, ...]]:
    told = json.loads(line)
    parameters = {name: (kind, text) for name, (kind, text) in told["parameters"].items()}
    return told["name"], told["description"], parameters, tuple(told["questions"]), tuple(told["values"])


# Other tools: name, description, parameters {name: (type, text)}, and how they are asked for (questions, values).
OTHERS = tuple(map(_other, _lines("others.jsonl")))


def _talks() -> tuple[tuple[dict[str, str], ...], ...]:
    lines = (line for name in sorted(_FOLDER.glob("talks.*.jsonl")) for line in _lines(name.name))
    return tuple(tuple(json.loads(line)["messages"]) for line in lines)


# Conversations about anything, without tools, on which the model is to stay what it was.
TALKS = _talks()
