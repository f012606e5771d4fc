"""Held-out questions on which function calling is measured: what is asked, the tools on offer, the calls expected.

Every number in them, operand or result, is one that `tools.number_split` keeps out of the training data, and texts
worded as a training question is (`tools.wordings`) are left out. The number that comes first in the text is the first
argument; a task of several steps is its expression in post-order.
"""

from __future__ import annotations

import ast
import functools
import inspect
import operator
import random
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeVar

from lab3.funcall import Tool
from lab3.tool_schema import tool_schema
from tools.number_split import is_held_out
from tools.wordings import is_trained

Number = int | float
Kind = Literal["single", "two_step", "three_step", "none"]
Language = Literal["en", "zh"]
Operation = Literal["add", "mul"]
Style = Literal["plain", "negative", "decimal", "word_problem"]
JsonType = Literal["number", "integer", "string"]
Card = TypeVar("Card")

OPERATIONS: tuple[Operation, ...] = ("add", "mul")
LARGEST_OPERAND, LARGEST_RESULT, MOST_DECIMALS = 10**6, 10**9, 6
_APPLY: dict[Operation, Callable[[Number, Number], Number]] = {"add": operator.add, "mul": operator.mul}
_OPERATION_OF: dict[type[ast.operator], Operation] = {ast.Add: "add", ast.Mult: "mul"}
_SIGN = {"add": "+", "mul": "*"}
_PYTHON_TYPES: dict[JsonType, Any] = {"number": int | float, "integer": int, "string": str}


@dataclass(frozen=True)
class Parameter:
    """One argument of a tool; the description may be empty."""

    name: str
    type: JsonType = "number"
    description: str = ""


@dataclass(frozen=True)
class ToolSpec:
    """A tool as the model sees it. `operation` is what it computes, None for one that is only there to distract."""

    name: str
    description: str
    parameters: tuple[Parameter, ...]
    operation: Operation | None = None

    def function(self) -> Tool:
        """A function for `lab3.funcall.run_tools`; a distractor's returns a text that says nothing."""

        def run(**arguments: Any) -> Any:
            if self.operation is None:
                return "no result"
            return _APPLY[self.operation](*(arguments[each.name] for each in self.parameters))

        types = {each.name: _PYTHON_TYPES[each.type] for each in self.parameters}
        lines = [f"    {each.name}: {each.description}" for each in self.parameters if each.description]
        keyword = inspect.Parameter.KEYWORD_ONLY
        signature = inspect.Signature([inspect.Parameter(name, keyword, annotation=types[name]) for name in types])
        run.__name__ = self.name
        run.__doc__ = "\n".join([self.description, "", "Args:", *lines] if lines else [self.description])
        run.__annotations__ = types
        run.__signature__ = signature  # type: ignore[attr-defined]
        return run

    def schema(self) -> dict[str, Any]:
        """The tool as an OpenAI request carries it."""
        return tool_schema(self.function())


@dataclass(frozen=True)
class ExpectedCall:
    """A call the model has to make, its arguments in the schema's order."""

    name: str
    arguments: dict[str, Number]


@dataclass(frozen=True)
class Case:
    """One question, the tools offered with it, the calls it needs in their order, and the number it comes to.

    No calls and no number for the kind "none". `topic` tells "plain", "negative" and "decimal" numbers in words, a
    "word_problem" or an "expression" in symbols; of "none", "chat" from a calculation "unfit" for the tools.
    """

    id: str
    kind: Kind
    language: Language
    topic: str
    question: str
    tools: tuple[ToolSpec, ...]
    expected: tuple[ExpectedCall, ...] = ()
    answer: Number | None = None


class Step(NamedTuple):
    """One operation of an expression."""

    operation: Operation
    left: Number
    right: Number
    result: Number


def held_out_cases(count: int = 600, seed: int = 20260) -> list[Case]:
    """The first `count` cases of a seed: a smaller count gives the beginning of the same list."""
    author = _Author(seed)
    return [author.case(index) for index in range(count)]


def solve(expression: str, numbers: Mapping[str, Number]) -> list[Step]:
    """The steps of an expression such as "(a+b)*c" in post-order, the left operand's first."""
    steps: list[Step] = []

    def value(node: ast.expr) -> Number:
        if not isinstance(node, ast.BinOp):
            return numbers[ast.unparse(node)]
        operation = _OPERATION_OF[type(node.op)]
        left, right = value(node.left), value(node.right)
        steps.append(Step(operation, left, right, _APPLY[operation](left, right)))
        return steps[-1].result

    value(ast.parse(expression, mode="eval").body)
    return steps


class _Task(NamedTuple):
    """A question in words or symbols and what it comes to."""

    question: str
    steps: list[Step]

    def is_whole(self) -> bool:
        return all(isinstance(number, int) for step in self.steps for number in step[1:])


class _Author:
    """Writes cases one after the other, drawing from shuffled decks so that nothing comes up too rarely."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._decks: dict[tuple[Any, ...], list[Any]] = {}
        self._asked: set[str] = set()
        chats = {language: _own(texts) for language, texts in CHATS.items()}
        self._chats = {language: self._random.sample(texts, len(texts)) for language, texts in chats.items()}

    def case(self, index: int) -> Case:
        kind, language = self._draw(_KINDS)
        while True:
            case = self._nothing(language) if kind == "none" else self._calling(kind, language)
            if case.question not in self._asked:
                self._asked.add(case.question)
                return replace(case, id=f"{index:04d}-{kind}-{language}")

    def _draw(self, cards: tuple[Card, ...]) -> Card:
        deck = self._decks.setdefault(cards, [])
        if not deck:
            deck += self._random.sample(cards, len(cards))
        card: Card = deck.pop()
        return card

    # --- questions --------------------------------------------------------------------------------------------------

    def _calling(self, kind: Kind, language: Language) -> Case:
        topic, task = self._single(language) if kind == "single" else self._several(kind, language)
        needed = {step.operation for step in task.steps}
        offered = [each for each in OPERATIONS if each in needed or self._random.random() < 0.6]
        specs = {operation: self._calculator(operation, whole=task.is_whole()) for operation in offered}
        others = self._random.sample(DISTRACTORS, self._random.randint(0, 3))
        expected = tuple(_call(specs[step.operation], step.left, step.right) for step in task.steps)
        tools = self._shuffled([*specs.values(), *others])
        return Case("", kind, language, topic, task.question, tools, expected, task.steps[-1].result)

    def _single(self, language: Language) -> tuple[str, _Task]:
        operation = self._draw(OPERATIONS)
        style: Style = self._draw(_SINGLE_STYLES)
        texts = (STORIES if style == "word_problem" else REQUESTS)[language, operation]
        return style, self._task(self._draw(_own(texts)), f"a{_SIGN[operation]}b", language, style)

    def _several(self, kind: Kind, language: Language) -> tuple[str, _Task]:
        if self._draw(("symbols", "words")) == "symbols":
            expression = self._draw(EXPRESSIONS[kind])
            text = self._draw(_own(LEAD_INS[language])).replace("{expression}", self._symbols(expression))
            return "expression", self._task(text, expression, language, self._draw(_STYLES))
        text, expression = self._draw(_own(PHRASES[language, kind]))
        style: Style = "word_problem" if "{name}" in text or "~" in text else self._draw(_STYLES)
        return style, self._task(text, expression, language, style)

    def _symbols(self, expression: str) -> str:
        times, space = self._draw(("*", "×")), self._draw(("", " "))
        text = re.sub("[a-d]", r"{\g<0>}", expression).replace("*", times)
        return re.sub("[+*×]", rf"{space}\g<0>{space}", text)

    def _task(self, text: str, expression: str, language: Language, style: Style) -> _Task:
        """Numbers for the slots of `text`, drawn until all of them and all results are held out and presentable."""
        slots = _SLOT.findall(text)
        while True:
            operands = self._operands(slots, style, digits=_digits(expression, style))
            steps = solve(expression, operands)
            if _presentable(list(operands.values()), [step.result for step in steps]):
                return _Task(_fill(text, {**operands, **self._words(language)}), steps)

    def _operands(self, slots: Iterable[tuple[str, str]], style: Style, *, digits: int) -> dict[str, Number]:
        """Numbers of the style for the slots "a" to "d"; a story's may be fractions where the slot has a tilde."""
        chance = self._random.random
        fraction_chance, minus_chance = _CHANCES[style]
        found: dict[str, Number] = {}
        for slot, tilde in slots:
            if slot in "abcd":
                fraction = chance() < fraction_chance and (style == "decimal" or tilde)
                number = (
                    self._fraction(digits, places=3 if style == "decimal" else 2) if fraction else self._whole(digits)
                )
                found[slot] = -number if chance() < minus_chance else number
        lacks_minus = style == "negative" and min(found.values()) > 0
        lacks_fraction = style == "decimal" and all(isinstance(number, int) for number in found.values())
        return self._operands(slots, style, digits=digits) if lacks_minus or lacks_fraction else found

    def _whole(self, digits: int) -> Number:
        return self._held_out(lambda length: self._random.randrange(10 ** (length - 1), 10**length), digits)

    def _fraction(self, digits: int, *, places: int) -> Number:
        def draw(length: int) -> Number:
            decimals = self._random.randint(1, places)
            tenths = self._random.randrange(1, 10 ** (min(length, 3) + decimals - 1))
            return float(tenths * 10 + self._random.randint(1, 9)) / 10.0**decimals

        return self._held_out(draw, digits)

    def _held_out(self, draw: Callable[[int], Number], digits: int) -> Number:
        lengths = range(1, digits + 1)
        while True:
            number = draw(self._random.choices(lengths, _LENGTHS[:digits])[0])
            if is_held_out(number):
                return number

    def _words(self, language: Language) -> dict[str, str]:
        name, name2 = self._random.sample(NAMES[language], 2)
        return {"name": name, "name2": name2, "thing": self._draw(THINGS)}

    def _nothing(self, language: Language) -> Case:
        """A case for which no tool is to be called: nothing to calculate, or nothing to calculate it with."""
        if self._draw(("chat", "unfit")) == "chat" and self._chats[language]:
            words = {"n": self._draw(_SMALL), "year": self._draw(_YEARS)}
            question = _fill(self._chats[language].pop(), words)
            count = self._random.randint(0, 3)
            calculators: Iterable[Operation] = [
                each for each in OPERATIONS if count == 0 or self._random.random() < 0.7
            ]
            return self._refusal(language, "chat", question, calculators, OTHER_TOOLS, count)
        if self._draw(("without a calculator", "another operation")) == "without a calculator":
            _, task = self._single(language)
            return self._refusal(language, "unfit", task.question, [], DISTRACTORS, self._random.randint(1, 3))
        text = self._draw(_own(UNFIT_REQUESTS[language]))
        largest_first = sorted(self._random.sample(_UNFIT_NUMBERS, 2), reverse=True)
        question = _fill(text, {**dict(zip("ab", largest_first, strict=True)), **self._words(language)})
        calculators = self._draw(_CALCULATORS)
        return self._refusal(language, "unfit", question, calculators, OTHER_TOOLS, self._random.randint(0, 1))

    # --- tools ------------------------------------------------------------------------------------------------------

    def _refusal(
        self,
        language: Language,
        topic: str,
        question: str,
        calculators: Iterable[Operation],
        others: tuple[ToolSpec, ...],
        count: int,
    ) -> Case:
        specs = [self._calculator(each, whole=True) for each in calculators]
        return Case(
            "", "none", language, topic, question, self._shuffled([*specs, *self._random.sample(others, count)])
        )

    def _calculator(self, operation: Operation, *, whole: bool) -> ToolSpec:
        description = self._draw(DESCRIPTIONS[operation])
        texts = self._draw(PARAMETER_TEXTS["en" if description.isascii() else "zh"])
        json_type: JsonType = "integer" if whole and self._random.random() < 0.25 else "number"
        names = self._draw(PARAMETER_NAMES)
        parameters = tuple(Parameter(name, json_type, text) for name, text in zip(names, texts, strict=True))
        return ToolSpec(self._draw(TOOL_NAMES[operation]), description, parameters, operation)

    def _shuffled(self, tools: list[ToolSpec]) -> tuple[ToolSpec, ...]:
        return tuple(self._random.sample(tools, len(tools)))


_SLOT = re.compile(r"\{(\w+)(~?)\}")
_FILLED = re.compile(r"(?P<sign>[+*×] ?)?\{(?P<slot>\w+)~?\}")


@functools.cache
def _own(texts: tuple[Card, ...]) -> tuple[Card, ...]:
    """Those of `texts` (or of pairs that begin with one) whose wording is not a training question's."""
    return tuple(
        each
        for each in texts
        if not is_trained(_SLOT.sub("7", each if isinstance(each, str) else each[0]))  # type: ignore[index]
    )


def _fill(text: str, words: Mapping[str, Number | str]) -> str:
    """The text with its slots filled; a negative number behind an operator goes into brackets."""

    def put(match: re.Match[str]) -> str:
        value, sign = words[match["slot"]], match["sign"] or ""
        bracketed = sign and not isinstance(value, str) and value < 0
        return f"{sign}({value})" if bracketed else f"{sign}{value}"

    return _FILLED.sub(put, text)


def _call(spec: ToolSpec, *numbers: Number) -> ExpectedCall:
    names = (each.name for each in spec.parameters)
    return ExpectedCall(spec.name, dict(zip(names, numbers, strict=True)))


def _digits(expression: str, style: Style) -> int:
    """The most digits an operand may have, so that the results stay readable."""
    if "*" not in expression:
        return 4 if style == "word_problem" else 6
    return 5 if len(expression) == 3 and style != "word_problem" else 3


def _presentable(operands: list[Number], results: list[Number]) -> bool:
    """Whether all numbers differ, and the results are held out, neither too long nor a float's rounding error."""
    if len({*operands, *results}) < len(operands) + len(results) or 0 in results:
        return False
    if any(abs(each) >= LARGEST_OPERAND for each in results[:-1]) or abs(results[-1]) >= LARGEST_RESULT:
        return False
    fractions = [each for each in results if isinstance(each, float)]
    exact = all(not each.is_integer() and "e" not in repr(each) for each in fractions)
    exact = exact and all(round(each, MOST_DECIMALS) == each for each in fractions)
    return exact and all(is_held_out(each) for each in results)


# --- shares -------------------------------------------------------------------------------------------------------

_SHARES: dict[tuple[Kind, Language], int] = {
    ("single", "en"): 29,
    ("single", "zh"): 16,
    ("two_step", "en"): 13,
    ("two_step", "zh"): 7,
    ("three_step", "en"): 5,
    ("three_step", "zh"): 3,
    ("none", "en"): 18,
    ("none", "zh"): 9,
}
_KINDS = tuple(pair for pair, share in _SHARES.items() for _ in range(share))
_STYLES: tuple[Style, ...] = ("plain", "plain", "negative", "decimal")
_SINGLE_STYLES: tuple[Style, ...] = (*_STYLES, "word_problem", "word_problem")
# How likely an operand is a fraction, and negative. At least one is where the style says so.
_CHANCES: dict[Style, tuple[float, float]] = {
    "plain": (0.0, 0.0),
    "negative": (0.0, 0.6),
    "decimal": (0.7, 0.15),
    "word_problem": (0.6, 0.0),
}
_CALCULATORS: tuple[tuple[Operation, ...], ...] = (("add",), ("mul",), OPERATIONS)
_LENGTHS = (1, 4, 6, 5, 4, 4)  # weights of operands of one to six digits: a single digit is held out
_SMALL = tuple(number for number in range(2, 30) if is_held_out(number))
_YEARS = tuple(year for year in range(1900, 2020) if is_held_out(year))
_UNFIT_NUMBERS = tuple(number for number in range(20, 5000) if is_held_out(number))

# --- tools --------------------------------------------------------------------------------------------------------

TOOL_NAMES: dict[Operation, tuple[str, ...]] = {
    "add": (
        "combine_totals",
        "accumulate",
        "tally",
        "grand_total",
        "jia_fa",
        "calc_addition",
        "qiu_he",
        "aggregate_values",
        "join_amounts",
        "increase_by",
        "compute_total",
        "running_total",
        "put_together",
        "merge_counts",
        "addition_tool",
        "pairTotal",
        "zong_he",
    ),
    "mul": (
        "scale_by",
        "area_of_rectangle",
        "cheng_fa",
        "calc_multiplication",
        "qiu_ji",
        "repeat_amount",
        "times_table",
        "price_for_quantity",
        "magnify",
        "multiplication_tool",
        "compute_product",
        "factor_product",
        "groups_of",
        "stretch_value",
        "pairProduct",
        "cheng_ji",
        "rate_by_amount",
    ),
}

DESCRIPTIONS: dict[Operation, tuple[str, ...]] = {
    "add": (
        "Adds two numbers and returns the total.",
        "Returns the sum of the two values.",
        "Calculates what the two inputs make when they are added together.",
        "Gives the total of a pair of numbers.",
        "Performs addition on two numeric inputs.",
        "Computes the first number plus the second.",
        "Puts two amounts together and reports their sum.",
        "Use this to find the sum of two numbers.",
        "Addition of two numbers",
        "Adds the second value onto the first.",
        "计算两个数的和。",
        "把两个数相加，返回总和。",
        "加法：返回两数之和",
    ),
    "mul": (
        "Multiplies two numbers and returns the result.",
        "Returns the product of the two values.",
        "Calculates what one value times the other is.",
        "Gives the product of a pair of numbers.",
        "Performs multiplication on two numeric inputs.",
        "Computes the first number times the second.",
        "Multiplies two amounts with each other and reports their product.",
        "Use this to multiply one number by another.",
        "Multiplication of two numbers",
        "Scales the first value by the second, that is, multiplies them.",
        "计算两个数的乘积。",
        "把两个数相乘，返回积。",
        "乘法：返回两数之积",
    ),
}

PARAMETER_NAMES: tuple[tuple[str, str], ...] = (
    ("u", "v"),
    ("num1", "num2"),
    ("p", "q"),
    ("value_1", "value_2"),
    ("left", "right"),
    ("shu1", "shu2"),
    ("first_value", "second_value"),
    ("y", "x"),
    ("operand1", "operand2"),
    ("lhs", "rhs"),
    ("n", "m"),
    ("numberOne", "numberTwo"),
    ("v", "u"),
    ("arg_1", "arg_2"),
    ("i", "j"),
)

PARAMETER_TEXTS: dict[Language, tuple[tuple[str, str], ...]] = {
    "en": (
        ("", ""),
        ("The first number.", "The second number."),
        ("First value", "Second value"),
        ("Number one.", "Number two."),
        ("A number.", "Another number."),
    ),
    "zh": (("", ""), ("第一个数", "第二个数"), ("前一个数值", "后一个数值")),
}


def _distractor(name: str, description: str, **parameters: JsonType) -> ToolSpec:
    return ToolSpec(name, description, tuple(Parameter(each, kind) for each, kind in parameters.items()))


ARITHMETIC_TOOLS = (
    _distractor("subtract_numbers", "Subtracts one number from another.", minuend="number", subtrahend="number"),
    _distractor("divide_evenly", "Divides one number by another.", dividend="number", divisor="number"),
    _distractor("square_root", "Returns the square root of a number.", radicand="number"),
    _distractor("raise_to_power", "Raises a base to an exponent.", base="number", exponent="number"),
    _distractor("remainder_of", "The remainder of an integer division.", value="integer", modulus="integer"),
    _distractor("absolute_value", "Returns the absolute value of a number.", value="number"),
    _distractor("jian_fa", "计算两个数的差。", beijianshu="number", jianshu="number"),
    _distractor("chu_fa", "计算两个数的商。", beichushu="number", chushu="number"),
)
OTHER_TOOLS = (
    _distractor("get_weather", "Current weather of a city.", city="string"),
    _distractor(
        "convert_length", "Converts a length to another unit.", value="number", from_unit="string", to_unit="string"
    ),
    _distractor("convert_temperature", "Celsius to Fahrenheit or back.", degrees="number", unit="string"),
    _distractor("search_flights", "Searches for flights between two cities.", origin="string", destination="string"),
    _distractor("search_files", "Searches the disk for files by their name.", pattern="string"),
    _distractor("create_event", "Puts an event into the calendar.", title="string", date="string"),
    _distractor("list_events", "Lists the calendar's events of a day.", date="string"),
    _distractor("reverse_text", "Returns a text backwards.", text="string"),
    _distractor("count_letters", "Counts how often a letter occurs in a text.", text="string", letter="string"),
    _distractor("to_upper_case", "Writes a text in capital letters.", text="string"),
    _distractor("set_alarm", "Sets an alarm clock.", time="string"),
    _distractor("exchange_rate", "Today's rate between two currencies.", source="string", target="string"),
    _distractor("send_message", "Sends a short message to somebody.", recipient="string", text="string"),
    _distractor("find_restaurants", "Finds restaurants in a city.", city="string", cuisine="string"),
    _distractor("play_music", "Plays songs of an artist.", artist="string"),
    _distractor("current_time", "Tells the time in a time zone.", timezone="string"),
    _distractor("roll_dice", "Rolls a die.", sides="integer"),
    _distractor("stock_price", "The latest price of a share.", symbol="string"),
    _distractor("cha_tianqi", "查询某个城市的天气。", chengshi="string"),
    _distractor("shezhi_naozhong", "设置闹钟。", shijian="string"),
)
DISTRACTORS = ARITHMETIC_TOOLS + OTHER_TOOLS

# --- texts --------------------------------------------------------------------------------------------------------
# Slots a, b, c, d are numbers and come in this order; one with a tilde may be a fraction in a word problem.

NAMES: dict[Language, tuple[str, ...]] = {
    "en": ("Amara", "Bruno", "Chloe", "Dmitri", "Elena", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Kofi", "Leila"),
    "zh": ("林涛", "周倩", "吴桐", "何静", "阿强", "苏雨", "马力", "小芸", "高飞", "秦月", "丁一凡", "老赵"),
}
THINGS = ("stickers", "marbles", "stamps", "shells", "buttons", "postcards", "coins", "badges", "crayons", "acorns")

REQUESTS: dict[tuple[Language, Operation], tuple[str, ...]] = {
    ("en", "add"): (
        "What is {a} plus {b}?",
        "How much do {a} and {b} come to when put together?",
        "Could you work out {a} + {b} for me?",
        "I need the total of {a} and {b}.",
        "Please find the sum of {a} and {b}.",
        "If I start with {a} and go up by {b}, where do I land?",
        "Raise {a} by {b} and tell me the new value.",
        "{a} and {b}: what do they make together?",
        "Which number is {a} more than {b}?",
        "Increase {a} by {b}, please.",
        "Combine {a} with {b} into one figure.",
        "Let me know the value of {a} added to {b}.",
        "{a} + {b} = ?",
        "What's the result of adding {a} and {b}?",
        "Sum up these figures: {a}, {b}.",
        "Hey, can you tot up {a} and {b}?",
        "What do I have if {a} is topped up with {b}?",
        "My two entries are {a} and {b}; what is their total?",
    ),
    ("en", "mul"): (
        "What is {a} times {b}?",
        "How much is {a} multiplied by {b}?",
        "Could you work out {a} × {b} for me?",
        "I need the product of {a} and {b}.",
        "Scale {a} by a factor of {b}.",
        "{a} * {b} = ?",
        "Take {a} and multiply it by {b}.",
        "What do {a} lots of {b} make?",
        "What comes out when {a} is multiplied with {b}?",
        "Please multiply {a} and {b} together.",
        "{a} by {b}: what is the product?",
        "Quick one: {a} times {b}?",
        "The factors are {a} and {b}; what is their product?",
        "Can you tell me what {a} times {b} works out to?",
        "My homework says: {a} × {b}. What is the result?",
        "Find the number that {a} multiplied by {b} gives.",
        "If {a} is made {b} times as large, what is it then?",
    ),
    ("zh", "add"): (
        "{a} 加 {b} 等于多少？",
        "请帮我算一下 {a}+{b}。",
        "求 {a} 与 {b} 的和。",
        "把 {a} 和 {b} 加在一起是多少？",
        "{a} 再加上 {b}，结果是几？",
        "我想知道 {a} 和 {b} 合起来是多少。",
        "在 {a} 的基础上增加 {b}，得到多少？",
        "{a}、{b} 这两个数的总和是多少？",
        "麻烦算算 {a} 跟 {b} 的合计。",
        "{a} 与 {b} 相加得多少？",
        "计算：{a} + {b} = ？",
        "老师让我求 {a} 加 {b}，答案是什么？",
    ),
    ("zh", "mul"): (
        "{a} 乘以 {b} 等于多少？",
        "请帮我算一下 {a}×{b}。",
        "求 {a} 与 {b} 的积。",
        "{a} 的 {b} 倍是多少？",
        "{a} 和 {b} 相乘得多少？",
        "我想知道 {a} 乘 {b} 的结果。",
        "计算：{a} * {b} = ？",
        "两个因数是 {a} 和 {b}，它们的乘积是多少？",
        "麻烦算算 {a} 乘上 {b}。",
        "将 {a} 与 {b} 两数相乘，写出结果。",
        "{a} × {b} 是多少？",
        "老师让我求 {a} 乘以 {b}，答案是什么？",
    ),
}

STORIES: dict[tuple[Language, Operation], tuple[str, ...]] = {
    ("en", "add"): (
        "{name} picked {a} apples before lunch and {b} after it. How many apples were picked in all?",
        "A bakery sold {a} loaves on Saturday and {b} loaves on Sunday. How many did it sell over the weekend?",
        "There are {a} passengers on a train. At the next stop {b} more get on. How many are on the train now?",
        "{name} had {a} {thing}, and {name2} brought another {b}. How many {thing} does {name} have now?",
        "A library owned {a} books and bought {b} new ones this year. How large is its collection now?",
        "The first tank holds {a~} litres and the second {b~} litres. How much do they hold together?",
        "{name} walked {a~} km in the morning and {b~} km in the evening. What distance did {name} cover?",
        "A farmer keeps {a} hens and {b} ducks. How many birds live on the farm?",
        "A plant was {a~} cm tall and grew by {b~} cm. How tall is it now?",
        "{name} paid {a~} dollars for a coat and {b~} dollars for a scarf. What did the shopping cost altogether?",
        "At the concert {a} people sat downstairs and {b} upstairs. How big was the audience?",
        "A savings account shows {a~} euros. {name} pays in another {b~} euros. What is the new balance?",
        "One video has {a} views, the other has {b}. How many views do they have between them?",
        "The red team scored {a} points and its partner, the blue team, scored {b}. What is their joint score?",
        "{name} read {a} pages last week and {b} pages this week. How many pages is that altogether?",
        "A truck already carries {a~} kg, and {b~} kg of gravel are loaded on top. What weight does it carry then?",
        "A school enrolled {a} girls and {b} boys. How many pupils did it enrol?",
        "{name} collected {a} {thing} and {name2} collected {b}. How many do the friends have together?",
        "A recipe takes {a~} g of flour and {b~} g of sugar. How many grams of dry ingredients is that?",
        "In spring {a} trees were planted in the park, in autumn a further {b}. How many were planted that year?",
        "The museum counted {a} visitors in June and {b} in July. How many came in those months?",
        "Yesterday the shelf held {a} jars; today {name} puts {b} more on it. How many jars stand there now?",
    ),
    ("en", "mul"): (
        "{name} buys {a} boxes of pencils with {b} pencils in each. How many pencils is that?",
        "A cinema has {a} rows with {b} seats each. How many seats are there?",
        "A ticket costs {a~} dollars. What do {b} tickets cost?",
        "{name} earns {a~} dollars an hour and works {b} hours. How much does {name} earn?",
        "A machine fills {a} bottles a minute. How many bottles does it fill in {b} minutes?",
        "A rectangular garden is {a~} m long and {b~} m wide. What is its area in square metres?",
        "There are {a} shelves in the shop, and every shelf holds {b} cans. How many cans is that?",
        "A car drives {a~} km on each litre of fuel. How far does it get on {b} litres?",
        "{name} runs {a~} km every day. How many kilometres does {name} run in {b} days?",
        "Each of {a} pupils brings {b} {thing} to school. How many {thing} are brought?",
        "A farmer plants {a} rows of cabbages, {b} in every row. How many cabbages are planted?",
        "A pack weighs {a~} kg. What do {b} such packs weigh?",
        "One page holds {a} words. How many words fit on {b} pages?",
        "{name} swims {a} laps of {b} metres. What distance does {name} swim?",
        "A hotel has {a} floors with {b} rooms on each. How many rooms has the hotel?",
        "Cloth is sold at {a~} euros a metre. What is the price of {b~} metres?",
        "A convoy of {a} buses sets off with {b} passengers aboard each. How many passengers travel?",
        "A wall is built of {a} layers of {b} bricks. How many bricks does it take?",
        "Every crate contains {a} melons, and {name} unloads {b} crates. How many melons are unloaded?",
        "A printer prints {a} pages per minute and runs for {b} minutes. How many pages come out?",
        "{name} puts {a~} dollars aside each week. How much is saved after {b} weeks?",
        "A tile covers {a~} square metres. What area do {b} tiles cover?",
    ),
    ("zh", "add"): (
        "{name}上午摘了{a}个苹果，下午又摘了{b}个，这一天一共摘了多少个？",
        "面包店周六卖出{a}个面包，周日卖出{b}个，周末共卖出多少个？",
        "火车上有{a}名乘客，到站后又上来{b}名，现在车上有多少名乘客？",
        "{name}原来有{a}张邮票，{name2}又送来{b}张，现在{name}有多少张？",
        "图书馆有{a}本书，今年新买了{b}本，馆藏变成多少本？",
        "甲桶装水{a~}升，乙桶装水{b~}升，两桶共装多少升？",
        "{name}早上走了{a~}千米，傍晚走了{b~}千米，总共走了多远？",
        "农场里有{a}只鸡和{b}只鸭，合起来有多少只？",
        "一件外套{a~}元，一条围巾{b~}元，两样合计多少元？",
        "存折上有{a~}元，{name}再存进{b~}元，余额是多少？",
        "学校招收了{a}名女生和{b}名男生，共招收多少名学生？",
        "春天公园种了{a}棵树，秋天又种了{b}棵，全年种了多少棵？",
    ),
    ("zh", "mul"): (
        "{name}买了{a}盒铅笔，每盒{b}支，共有多少支铅笔？",
        "电影院有{a}排座位，每排{b}个，一共有多少个座位？",
        "一张门票{a~}元，买{b}张要付多少元？",
        "{name}每小时挣{a~}元，工作{b}小时能挣多少元？",
        "机器每分钟灌装{a}瓶水，{b}分钟能灌装多少瓶？",
        "长方形菜地长{a~}米，宽{b~}米，面积是多少平方米？",
        "仓库里有{a}箱橙子，每箱{b}个，共有多少个橙子？",
        "汽车每升油能跑{a~}千米，{b}升油能跑多少千米？",
        "一袋大米重{a~}千克，{b}袋这样的大米重多少千克？",
        "{name}每天跑{a~}千米，{b}天共跑多少千米？",
        "一本书每页有{a}个字，{b}页有多少个字？",
        "宾馆有{a}层，每层{b}个房间，房间总数是多少？",
    ),
}

EXPRESSIONS: dict[Kind, tuple[str, ...]] = {
    "two_step": (
        "(a+b)*c",
        "a*(b+c)",
        "a+b*c",
        "a*b+c",
        "a+b+c",
        "a*b*c",
        "a+(b*c)",
        "(a*b)+c",
        "a+(b+c)",
        "a*(b*c)",
    ),
    "three_step": (
        "(a+b)*(c+d)",
        "a*b+c*d",
        "(a+b)*c+d",
        "a*(b+c)+d",
        "a+b*c+d",
        "(a+b+c)*d",
        "a*(b+c*d)",
        "a+(b+c)*d",
        "(a*b+c)*d",
        "a+b+c+d",
    ),
}

LEAD_INS: dict[Language, tuple[str, ...]] = {
    "en": (
        "Evaluate {expression}.",
        "What does {expression} come to?",
        "{expression} = ?",
        "Please work this out: {expression}",
        "My worksheet asks for {expression}. What is it?",
        "Find the value of {expression}",
        "How much is {expression}?",
        "Step by step, what is {expression}?",
    ),
    "zh": (
        "求 {expression} 的值。",
        "{expression} 等于多少？",
        "帮忙算一算：{expression}",
        "{expression} = ？",
        "请一步一步算出 {expression} 的结果。",
        "作业里有一道题：{expression}，答案是多少？",
    ),
}

PHRASES: dict[tuple[Language, Kind], tuple[tuple[str, str], ...]] = {
    ("en", "two_step"): (
        ("First add {a} and {b}; then multiply what you get by {c}.", "(a+b)*c"),
        ("What is {a} times the sum of {b} and {c}?", "a*(b+c)"),
        ("Multiply {a} by {b} and then add {c} to the outcome.", "a*b+c"),
        ("Add {a} to the product of {b} and {c}.", "a+b*c"),
        ("How much is the product of {a} and {b}, increased by {c}?", "a*b+c"),
        ("I add {a}, {b} and {c} up. What total do I get?", "a+b+c"),
        ("What is the product of the three numbers {a}, {b} and {c}?", "a*b*c"),
        ("Start from {a}, go up by {b}, and finally take {c} times that. Where do you end?", "(a+b)*c"),
        ("Which number is {a} more than {b} times {c}?", "a+b*c"),
        ("Put {a} and {b} together and make the total {c} times as big.", "(a+b)*c"),
        ("Find {a} multiplied by the total of {b} and {c}.", "a*(b+c)"),
        ("{name} has {a} coins in a purse and {b} bags of {c} coins each. How many coins are there?", "a+b*c"),
        (
            "{name} orders {a} crates with {b} bottles in each, and {c} loose bottles. How many bottles is that?",
            "a*b+c",
        ),
        ("Lunch is ordered for {a} girls and {b} boys at {c~} dollars a head. What is the bill?", "(a+b)*c"),
        ("At {a~} dollars apiece, {name} buys {b} red roses and {c} white ones. What is the price?", "a*(b+c)"),
    ),
    ("en", "three_step"): (
        ("Multiply the sum of {a} and {b} by the sum of {c} and {d}.", "(a+b)*(c+d)"),
        ("Add the product of {a} and {b} to the product of {c} and {d}.", "a*b+c*d"),
        ("First add {a} and {b}, multiply the total by {c}, and finally add {d}.", "(a+b)*c+d"),
        ("Multiply {a} by {b}, add {c} to that, then multiply everything by {d}.", "(a*b+c)*d"),
        ("What do {a}, {b}, {c} and {d} amount to when all are added up?", "a+b+c+d"),
        ("Take {a} times the sum of {b} and {c}, and increase it by {d}.", "a*(b+c)+d"),
        ("{name} buys {a} pens at {b~} dollars each and {c} rulers at {d~} dollars each. What is the bill?", "a*b+c*d"),
    ),
    ("zh", "two_step"): (
        ("先求 {a} 与 {b} 的和，再把结果乘以 {c}，最后得多少？", "(a+b)*c"),
        ("{a} 乘以 {b} 与 {c} 的和，得多少？", "a*(b+c)"),
        ("{a} 乘 {b} 之后再加 {c}，结果是多少？", "a*b+c"),
        ("{a} 加上 {b} 与 {c} 的积是多少？", "a+b*c"),
        ("把 {a}、{b}、{c} 三个数都加起来，总数是多少？", "a+b+c"),
        ("{a}、{b}、{c} 连乘的积是多少？", "a*b*c"),
        ("{name}有{a}枚硬币，另外还有{b}袋，每袋{c}枚，一共有多少枚？", "a+b*c"),
        ("{name}收到{a}箱饮料，每箱{b}瓶，还有零散的{c}瓶，共有多少瓶？", "a*b+c"),
        ("{a}名女生和{b}名男生去看展览，每人票价{c~}元，一共要付多少元？", "(a+b)*c"),
    ),
    ("zh", "three_step"): (
        ("{a} 与 {b} 的和乘以 {c} 与 {d} 的和，得多少？", "(a+b)*(c+d)"),
        ("{a} 与 {b} 的积加上 {c} 与 {d} 的积是多少？", "a*b+c*d"),
        ("先把 {a} 和 {b} 相加，再乘以 {c}，最后加上 {d}，结果是多少？", "(a+b)*c+d"),
        ("{a} 乘 {b}，再加 {c}，所得的数再乘 {d}，是多少？", "(a*b+c)*d"),
        ("把 {a}、{b}、{c}、{d} 四个数全部相加得多少？", "a+b+c+d"),
        ("{name}买了{a}支钢笔，每支{b~}元，又买了{c}把尺子，每把{d~}元，一共花了多少元？", "a*b+c*d"),
    ),
}

UNFIT_REQUESTS: dict[Language, tuple[str, ...]] = {
    "en": (
        "What is {a} minus {b}?",
        "Subtract {b} from {a}.",
        "Divide {a} by {b}.",
        "What is the square root of {a}?",
        "How much is left of {a} after {b} is taken away?",
        "What is the difference between {a} and {b}?",
        "{a} / {b} = ?",
        "{a} - {b} = ?",
        "What remainder does {a} leave when divided by {b}?",
        "{name} had {a} {thing} and lost {b} of them. How many are left?",
        "If {a} sweets are shared equally among {b} children, how many does each child get?",
        "Is {a} a prime number?",
        "What is the logarithm of {a}?",
        "How many times does {b} go into {a}?",
    ),
    "zh": (
        "{a} 减去 {b} 等于多少？",
        "{a} 除以 {b} 是多少？",
        "求 {a} 的平方根。",
        "{a} 与 {b} 的差是多少？",
        "{a} - {b} = ？",
        "{a} ÷ {b} = ？",
        "{name}有{a}颗糖，吃掉了{b}颗，还剩多少颗？",
        "把{a}本书平均分给{b}个班，每班分到多少本？",
        "{a} 除以 {b} 的余数是几？",
        "{a} 是质数吗？",
    ),
}

CHATS: dict[Language, tuple[str, ...]] = {
    "en": (
        "Tell me a story about a lighthouse keeper and a whale.",
        "Good morning! How are you today?",
        "Who wrote Pride and Prejudice?",
        "What is your favourite season, and why?",
        "Why is the sky blue?",
        "Write a haiku about falling leaves.",
        "How do I say 'thank you very much' in Spanish?",
        "Translate 'the cat sleeps on the sofa' into French.",
        "Show me a Python loop that prints the letters of a word.",
        "What does the keyword `static` mean in Java?",
        "Hello there!",
        "Thanks a lot, that was helpful.",
        "Who are you?",
        "What can you help me with?",
        "Recommend a novel for a long train ride.",
        "What is the capital of Portugal?",
        "Explain photosynthesis to a child.",
        "Give me some tips for sleeping better.",
        "How should I prepare for a job interview?",
        "Which is nicer for a holiday, the sea or the mountains?",
        "Name {n} fruits that grow in warm countries.",
        "List the top {n} books everybody should read.",
        "What happened in the year {year}?",
        "Which film from {year} do you like best?",
        "Who was famous in {year}?",
        "My bus is number {n}. Do you like riding the bus?",
        "I turned {n} today! Any wishes for me?",
        "Give me {n} ideas for a birthday party.",
        "Describe a typical day in {year} on a farm.",
        "My lucky number is {n}. What is yours?",
        "What is a black hole?",
        "How do vaccines work?",
        "Can you write a short poem for my grandmother?",
        "What is the difference between a crocodile and an alligator?",
        "Why do cats purr?",
        "Tell me a joke about a penguin.",
        "How do I boil an egg?",
        "What should I cook with potatoes and cheese?",
        "Is it rude to be late for dinner?",
        "Do you think robots will ever feel love?",
        "Correct the grammar: 'She go to school every day.'",
        "What is a synonym of 'happy'?",
        "Write an email to my landlord about a broken heater.",
        "Who painted the Mona Lisa?",
        "Which language is spoken in Brazil?",
        "Explain what an operating system does.",
        "What is recursion in programming?",
        "How do I undo the last commit in git?",
        "What is the boiling of water called in physics?",
        "How do plants drink water?",
        "What makes a good friend?",
        "I feel a little sad today. Can you cheer me up?",
        "Invent a name for a small coffee shop.",
        "Write a slogan for a bicycle repair service.",
        "What is the plot of Romeo and Juliet?",
        "Why do we celebrate New Year?",
        "How do mountains form?",
        "What is an adjective?",
        "Summarise the tale of Little Red Riding Hood.",
        "Which instrument should a beginner learn?",
        "Tell me something surprising about octopuses.",
        "What is mathematics good for in daily life?",
        "Who invented the number zero?",
        "Explain in words what an average is.",
        "How can I stop being afraid of maths exams?",
        "Good night, see you tomorrow!",
        "What is the largest animal on earth?",
        "How do I tie a bow tie?",
        "Describe the smell of rain.",
        "What does 'break a leg' mean?",
    ),
    "zh": (
        "给我讲一个关于小狐狸的故事吧。",
        "早上好！今天过得怎么样？",
        "你是谁？",
        "你能帮我做些什么？",
        "《红楼梦》的作者是谁？",
        "天空为什么是蓝色的？",
        "请写一首关于秋天的短诗。",
        "“谢谢你的帮助”用英语怎么说？",
        "把“猫在沙发上睡觉”翻译成英文。",
        "用 Python 写一个打印列表元素的循环。",
        "推荐一本适合旅途中看的小说。",
        "法国的首都是哪里？",
        "怎样才能睡得更好？",
        "面试之前应该准备什么？",
        "你喜欢大海还是高山？",
        "说出{n}种热带水果的名字。",
        "请列出{n}部值得一看的电影。",
        "{year}年发生过什么大事？",
        "我今天满{n}岁了，祝福我一下吧！",
        "我住在{n}号楼，你喜欢住楼房吗？",
        "{year}年的人们怎样过春节？",
        "什么是黑洞？",
        "为什么猫会打呼噜？",
        "讲一个好笑的笑话。",
        "怎么煮鸡蛋才好吃？",
        "“高兴”的近义词有哪些？",
        "帮我写一封请假的邮件。",
        "蒙娜丽莎是谁画的？",
        "请解释一下什么是操作系统。",
        "编程里的递归是什么意思？",
        "我今天有点难过，能安慰我一下吗？",
        "给一家小咖啡馆起个名字。",
        "端午节为什么要吃粽子？",
        "山是怎么形成的？",
        "“画蛇添足”是什么意思？",
        "初学者学什么乐器比较好？",
        "学数学有什么用？",
        "谢谢，再见！",
        "数字零是谁发明的？",
        "你觉得机器人会有感情吗？",
    ),
}
