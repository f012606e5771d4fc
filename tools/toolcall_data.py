"""The training conversations of the embedded model's tool caller, made up by a program: nothing is downloaded.

Conventions the model learns: it first writes what there is to compute, "= (3 + 5) * 2", and calls in the same turn; the
number spoken first goes to the parameter listed first; several steps are done one call a turn, the left operand's
first, and what is left is written anew with each result in it; what no tool can do is answered without a call.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from tools import toolcall_phrases as phrases
from tools.number_split import is_held_out

Number = int | float
Message = dict[str, Any]
Expression = tuple[str, Any, Any]  # ("add" | "mul", left, right), leaves are numbers

_COMPUTE: dict[str, Callable[[Number, Number], Number]] = {"add": lambda a, b: a + b, "mul": lambda a, b: a * b}
_TIMES = ("*", "*", "×", "x", "·")
_SIGNS = {"add": "+", "mul": "*"}
FORMULA = "= "  # what a turn with calculations begins with


@dataclass(frozen=True)
class Question:
    """Something to ask that needs no call, and what tool would be needed for it ("" for none)."""

    text: str
    language: str
    needs: str = ""


@dataclass(frozen=True)
class Answered:
    """A question with the answer that the model gives without tools."""

    question: Question
    answer: str


@dataclass(frozen=True)
class Conversation:
    """Messages as a chat template takes them, and the tools as LMDeploy hands them to it.

    `imitate`: the last answer is the model's own; it is to be given as it would be without tools. `given`: so many
    messages are there already, and nothing in them is to be learned. `forced`: some turns begin with a call, without a
    formula, as `tool_choice="required"` makes them; that they begin so is not to be learned.
    """

    messages: list[Message]
    tools: list[dict[str, Any]]
    imitate: bool = False
    given: int = 0
    forced: bool = False


class Draw(random.Random):
    """Random choices; wordings come from one of two parts that share none, one in eight being for development."""

    def __init__(self, seed: int, *, development: bool = False) -> None:
        super().__init__(seed)
        self.development = development

    def wording(self, templates: Sequence[Any]) -> Any:
        """One of `templates`, of which there must be three."""
        return self.choice([each for place, each in enumerate(templates) if (place % 8 == 2) == self.development])


@dataclass
class _Tool:
    name: str
    parameters: tuple[str, ...]
    function: dict[str, Any] = field(default_factory=dict)


def conversations(seed: int, chat: Sequence[Answered], *, development: bool = False) -> Iterator[Conversation]:
    """Endless training conversations; those without a call use the questions and answers of `chat`.

    With `development`, conversations whose wordings are in no training conversation.
    """
    rng = Draw(seed, development=development)
    makers: list[Callable[[Draw], Conversation | None]]
    makers = [*[_single] * 3, *[_chain] * 3, _two_questions, _other_call, _follow_up]
    if chat:
        idle = [each for each in chat if not each.question.needs]
        unfit = [each for each in chat if each.question.needs]
        makers += [partial(_no_call, chat=some) for some in (idle, unfit, unfit) if some]
    while True:
        made = rng.choice(makers)(rng)
        if made is None:
            continue
        kind = rng.random()
        yield _forced(made, rng) if kind < 0.12 else (_told(made, rng) or made) if kind < 0.24 else made


def no_call_questions(seed: int, count: int) -> list[Question]:
    """Questions that need no tool, or one that will not be there."""
    rng = Draw(seed)
    questions: dict[str, Question] = {}
    while len(questions) < count:
        language = _language(rng)
        kind = rng.choice(("chat", "chat", "sub", "sub", "div", "div", "other", "other", "add", "mul"))
        if kind == "chat":
            text = _expand(
                rng, rng.choice(phrases.CHAT[language]), w=rng.choice(phrases.WORDS), c=rng.choice(phrases.CITIES)
            )
            made = Question(text, language)
        elif kind in ("add", "mul"):
            made = Question(_one_step(rng, kind, language)[0], language, kind)
        else:
            a, b = _operands(rng, "add")
            text = rng.choice(phrases.UNFIT[kind]).format(a=_spoken(a), b=_spoken(b))
            made = Question(text, _language_of(text), kind)
        questions[made.text] = made
    return list(questions.values())


# --- conversations -----------------------------------------------------------------------------------------------


def _single(rng: Draw) -> Conversation:
    operation, language = rng.choice(("add", "mul")), _language(rng)
    toolset = _toolset(rng, {operation})
    return Conversation(
        [*_system(rng), *_task(rng, toolset, operation, language)], [tool.function for tool in toolset.values()]
    )


def _follow_up(rng: Draw) -> Conversation:
    """Two or three tasks one after the other in one conversation."""
    language = _language(rng)
    toolset = _toolset(rng, {"add", "mul"})
    messages = _system(rng)
    for _ in range(rng.choice((2, 2, 3))):
        messages += _task(rng, toolset, rng.choice(("add", "mul")), language)
    return Conversation(messages, [tool.function for tool in toolset.values()])


def _task(rng: Draw, toolset: dict[str, _Tool], operation: str, language: str) -> list[Message]:
    text, a, b = _one_step(rng, operation, language)
    text = _decorate(rng, text if rng.random() < 0.93 else text.lower(), language, toolset[operation].name)
    return [_user(text), *_solve((operation, a, b), toolset, _language_of(text))]


def _one_step(rng: Draw, operation: str, language: str) -> tuple[str, Number, Number]:
    if rng.random() < 0.4:
        a, b = _amounts(rng, operation)
        return _story(rng, rng.wording(phrases.STORIES[operation, language]), language, a=a, b=b), a, b
    a, b = _operands(rng, operation)
    return _direct(rng, operation, language, a, b), a, b


def _chain(rng: Draw) -> Conversation | None:
    """Two or three steps: an expression with signs and brackets, or a sentence."""
    language = _language(rng)
    if rng.random() < 0.4:
        tree = _random_tree(rng, rng.choice((2, 2, 2, 3)))
        if _has_held_out(tree):
            return None
        text = rng.wording(phrases.EXPRESSION[language])
        text = _expand(rng, text, e=_written(rng, tree))
    else:
        story = rng.random() < 0.5
        template, shape = rng.wording((phrases.CHAIN_STORIES if story else phrases.CHAINS)[language])
        letters = sorted(set(re.findall(r"\{([a-d])\}", template)))
        numbers = [_whole(rng) if story else _number(rng) for _ in letters]
        tree = _fill(shape, numbers)
        if _has_held_out(tree):
            return None
        text = _story(rng, template, language, **dict(zip(letters, numbers, strict=True)))
    needed = set(re.findall("add|mul", repr(tree)))
    toolset = _toolset(rng, needed if rng.random() < 0.2 else {"add", "mul"})
    text = _decorate(rng, text, language, "")
    messages = [*_system(rng), _user(text), *_solve(tree, toolset, _language_of(text))]
    return Conversation(messages, [tool.function for tool in toolset.values()])


def _two_questions(rng: Draw) -> Conversation:
    """An add and a mul in one question: one call after the other, then both results."""
    language = _language(rng)
    toolset = _toolset(rng, {"add", "mul"})
    trees: list[Expression] = [(name, *_operands(rng, name)) for name in rng.sample(("add", "mul"), 2)]
    if rng.random() < 0.3:
        trees[1] = (trees[0][0], *_operands(rng, trees[0][0]))
    parts = [_bare(rng, tree, language) for tree in trees]
    text = _expand(rng, rng.wording(phrases.BOTH[language]), x=parts[0], y=parts[1])
    messages = [*_system(rng), _user(_decorate(rng, text[0].upper() + text[1:], language, ""))]
    results = []
    for tree, then in zip(trees, (f", {_formula(trees[1])}", ""), strict=True):
        *calls, _ = _solve(tree, toolset, language, then=then)
        messages += calls
        results.append(calls[-1]["content"])
    messages.append({"role": "assistant", "content": phrases.ANSWERS[language].format(x=results[0], y=results[1])})
    return Conversation(messages, [tool.function for tool in toolset.values()])


def _other_call(rng: Draw) -> Conversation:
    """A call of another function, so that a name and a description are read and not only guessed from the question."""
    name, text, parameters, questions, values = rng.choice([other for other in phrases.OTHERS if other[3]])
    toolset = _toolset(rng, set(rng.sample(("add", "mul"), rng.choice((0, 1, 2)))), without={name})
    value = rng.choice(values)
    asked = rng.choice(questions).format(v=value)
    tools = [tool.function for tool in toolset.values()]
    tools.insert(rng.randrange(len(tools) + 1), _function(rng, name, text, parameters))
    language = _language_of(asked)
    (parameter,) = parameters
    return Conversation(
        [*_system(rng), _user(_decorate(rng, asked, language, "")), _call(name, {parameter: value})], tools
    )


def _no_call(rng: Draw, chat: Sequence[Answered]) -> Conversation:
    """A question that no tool fits, answered as without tools; now and then after a task that was solved by a call."""
    given = rng.choice(chat)
    forbidden = {given.question.needs} - {""}
    offered = {"add", "mul"} - forbidden
    toolset = _toolset(rng, offered if rng.random() < 0.7 else set(), forbidden=forbidden)
    messages = []
    if len(offered) == 2 and {"add", "mul"} <= toolset.keys() and rng.random() < 0.15:
        messages = _task(rng, toolset, rng.choice(("add", "mul")), given.question.language)
    messages += [_user(given.question.text), {"role": "assistant", "content": given.answer}]
    tools = [tool.function for tool in toolset.values()]
    if not tools:
        tools = [_distractor(rng, set())]
    return Conversation(messages, tools, imitate=True)


def _solve(tree: Expression, toolset: dict[str, _Tool], language: str, *, then: str = "") -> list[Message]:
    """One call a turn with its result, left operands first, then the answer. `then`: what is to be computed next."""
    messages: list[Message] = []
    left: Any = tree
    while isinstance(left, tuple):
        operation, a, b = _first_step(left)
        tool, result = toolset[operation], _COMPUTE[operation](a, b)
        formula = FORMULA + _formula(left) + then
        messages.append(_call(tool.name, dict(zip(tool.parameters, (a, b), strict=True)), formula))
        messages.append({"role": "tool", "content": _spoken(result)})
        left = _after_first_step(left, result)
    return [*messages, {"role": "assistant", "content": phrases.ANSWER[language].format(r=_spoken(left))}]


def _first_step(tree: Expression) -> tuple[str, Number, Number]:
    """The operation to do first and its two numbers: the left operand's first."""
    operation, left, right = tree
    for part in (left, right):
        if isinstance(part, tuple):
            return _first_step(part)
    return operation, left, right


def _after_first_step(tree: Expression, result: Number) -> Expression | Number:
    """`tree` with the result of its first step in that step's place."""
    operation, left, right = tree
    if isinstance(left, tuple):
        return operation, _after_first_step(left, result), right
    if isinstance(right, tuple):
        return operation, left, _after_first_step(right, result)
    return result


def _formula(tree: Expression) -> str:
    """`tree` as "(3 + 5) * 2": only the brackets that precedence and the order of steps need."""

    def text(node: Any, parent: str, right: bool) -> str:
        if not isinstance(node, tuple):
            return _spoken(node)
        operation = node[0]
        inner = f"{text(node[1], operation, False)} {_SIGNS[operation]} {text(node[2], operation, True)}"
        needed = (parent == "mul" and operation == "add") or (right and parent == operation)
        return f"({inner})" if needed else inner

    return text(tree, "", False)


def _forced(conversation: Conversation, rng: Draw) -> Conversation:
    """The same without the formula of the first call, and some of the others."""
    messages, bare = [], True
    for message in conversation.messages:
        calls = "tool_calls" in message
        messages.append(message | {"content": ""} if calls and bare else message)
        bare = rng.random() < 0.5 if calls else bare
    return replace(conversation, messages=messages, forced=True)


def _told(conversation: Conversation, rng: Draw) -> Conversation | None:
    """The same after a first call as the tutorial's script tells it: no call is sent back, and the result is "3+5=8".

    None if there is no such call.
    """
    asked = next((place for place, each in enumerate(conversation.messages) if each.get("tool_calls")), None)
    if asked is None or conversation.messages[-1]["role"] != "assistant" or not conversation.messages[asked]["content"]:
        return None
    result = asked + 1
    call, spoken = conversation.messages[asked], conversation.messages[result]["content"]
    a, b = call["tool_calls"][0]["function"]["arguments"].values()
    for sign, compute in (("+", _COMPUTE["add"]), ("*", _COMPUTE["mul"])):
        if _spoken(compute(a, b)) == spoken:
            formula = f"{_spoken(a)}{sign}{_spoken(b)}={spoken}"
            break
    content = call["content"] if rng.random() < 0.7 else ""
    messages = list(conversation.messages)
    messages[asked] = {"role": "assistant", "content": content}
    messages[result] = {"role": "environment", "content": rng.choice((formula, formula, spoken)), "name": "plugin"}
    return replace(conversation, messages=messages, given=result + 1)


def _system(rng: Draw) -> list[Message]:
    if rng.random() < 0.8:
        return []
    return [{"role": "system", "content": rng.choice(_SYSTEMS)}]


_SYSTEMS = (
    "You are a helpful assistant.",
    "You are a calculator that calls functions.",
    "You are an assistant with access to tools. Use them when they fit.",
    "你是一个乐于助人的助手。",
    "你可以调用工具来解决问题。",
    "Answer briefly.",
)


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _call(name: str, arguments: dict[str, Any], content: str = "") -> Message:
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": content, "tool_calls": [call]}


# --- wording -----------------------------------------------------------------------------------------------------


def _language(rng: Draw) -> str:
    return "zh" if rng.random() < 0.42 else "en"


def _language_of(text: str) -> str:
    """A bare formula counts as English."""
    return "zh" if _is_chinese(text) else "en"


def _is_chinese(text: str) -> bool:
    return any("一" <= letter <= "鿿" for letter in text)


def _expand(rng: Draw, template: str, **fields: Any) -> str:
    """`template` with one of each `[x|y]` chosen and its fields filled in."""
    while "[" in template:
        template = re.sub(r"\[([^\[\]]*)\]", lambda match: rng.choice(match[1].split("|")), template)
    return template.format(**fields)


def _direct(rng: Draw, operation: str, language: str, a: Number, b: Number) -> str:
    """A direct request. A negative number behind a sign is mostly in brackets."""
    template = rng.wording(phrases.DIRECT[operation, language])
    signs = re.search(r"\}\s*(\[[^\]]*)?[+*×]", template)
    shown_b = f"({_spoken(b)})" if b < 0 and signs and rng.random() < 0.7 else _spoken(b)
    return _end(rng, _expand(rng, template, a=_spoken(a), b=shown_b), language)


def _bare(rng: Draw, tree: Expression, language: str) -> str:
    operation, a, b = tree
    if language == "en":
        forms = {"add": ("{a} + {b}", "{a} plus {b}", "the sum of {a} and {b}"),
                 "mul": ("{a} * {b}", "{a} times {b}", "the product of {a} and {b}")}  # fmt: skip
    else:
        forms = {"add": ("{a}+{b}", "{a}加{b}", "{a}与{b}的和"), "mul": ("{a}×{b}", "{a}乘以{b}", "{a}与{b}的积")}
    return rng.choice(forms[operation]).format(a=_spoken(a), b=_spoken(b))


def _story(rng: Draw, template: str, language: str, **numbers: Number) -> str:
    fill = {key: rng.choice(values) for key, values in phrases.FILL[language].items()}
    spoken = {key: _spoken(value) for key, value in numbers.items()}
    return _end(rng, _expand(rng, template, **spoken, **fill), language)


def _end(rng: Draw, text: str, language: str) -> str:
    if text[-1] in "=?？。.0123456789":
        return text if rng.random() < 0.7 else f"{text} ?"
    asks = language == "zh" or _ASKS.search(text)
    marks = ("？", "？", "?", "") if language == "zh" else ("?", "?", "?", "") if asks else (".", ".", "", "!")
    return text + rng.choice(marks)


# The last sentence begins, or goes on after a comma, as a question does.
_ASKS = re.compile(
    r"(^|[.!?,;:] ((and|so|then) )?)(what|how|which|who|where|when|can|could|will|would|do|does|is|are|if)\b[^.?!]*$",
    re.IGNORECASE,
)


def _decorate(rng: Draw, text: str, language: str, tool: str) -> str:
    """Sometimes a greeting before and a remark after the question."""
    if rng.random() < 0.2:
        text = rng.choice(phrases.BEFORE[language]) + text
    if rng.random() < 0.25:
        remarks = [each for each in phrases.AFTER[language] if tool or "{tool}" not in each]
        if text[-1] not in ".?!？。":
            text += "。" if language == "zh" else "."
        text += _expand(rng, rng.choice(remarks), tool=tool)
    return text


# --- numbers and expressions -------------------------------------------------------------------------------------


def _spoken(number: Number) -> str:
    return repr(number)


def _whole(rng: Draw) -> int:
    """A whole number of everyday size, of one to six digits."""
    while True:
        number = rng.randrange(2, 10 ** rng.choice((1, 2, 2, 2, 3, 3, 4, 5, 6)))
        if not is_held_out(number):
            return number


def _number(rng: Draw) -> Number:
    """Of one to six digits; one in six negative, one in five with one to three decimals."""
    while True:
        digits = rng.choice((1, 1, 2, 2, 3, 3, 4, 5, 6, 6))
        number: Number = rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)
        if rng.random() < 0.2:
            number = round(rng.randrange(1, 10 ** rng.choice((2, 3, 4, 5))) / 10 ** rng.choice((1, 1, 2, 2, 3)), 3)
        if rng.random() < 1 / 6:
            number = -number
        if not is_held_out(number) and number != 0 and (isinstance(number, int) or not number.is_integer()):
            return number


def _operands(rng: Draw, operation: str) -> tuple[Number, Number]:
    """Two numbers; an unwieldy result such as 0.30000000000000004 is kept once in ten times."""
    while True:
        a, b = _number(rng), _number(rng)
        result = _COMPUTE[operation](a, b)
        if not is_held_out(result) and (len(repr(result)) < 15 or rng.random() < 0.1):
            return a, b


def _amounts(rng: Draw, operation: str) -> tuple[Number, Number]:
    """Two numbers for a story: above zero, one in seven with decimals, as prices and weights have."""
    while True:
        a, b = (abs(_number(rng)) if rng.random() < 0.2 else _whole(rng) for _ in range(2))
        result = _COMPUTE[operation](a, b)
        if not is_held_out(result) and len(repr(result)) < 15:
            return a, b


def _random_tree(rng: Draw, operations: int) -> Expression:
    """An expression of two or three operations, small numbers preferred."""
    if operations == 1:
        return (rng.choice(("add", "mul")), _leaf(rng), _leaf(rng))
    left = rng.randrange(operations)
    first, second = (_random_tree(rng, count) if count else _leaf(rng) for count in (left, operations - 1 - left))
    return (rng.choice(("add", "mul")), first, second)


def _leaf(rng: Draw) -> Number:
    return _number(rng) if rng.random() < 0.3 else _whole(rng) if rng.random() < 0.3 else _small(rng)


def _small(rng: Draw) -> int:
    while True:
        number = rng.randrange(1, rng.choice((10, 10, 20, 100)))
        if not is_held_out(number):
            return number


def _fill(shape: Any, numbers: Sequence[Number]) -> Any:
    if isinstance(shape, tuple):
        return (shape[0], _fill(shape[1], numbers), _fill(shape[2], numbers))
    return numbers[shape]


def _has_held_out(tree: Expression) -> bool:
    """Whether a result on the way is kept for measuring, or too long to be worth writing."""
    seen: list[Number] = []

    def value(node: Any) -> Number:
        if isinstance(node, tuple):
            node = _COMPUTE[node[0]](value(node[1]), value(node[2]))
            seen.append(node)
        number: Number = node
        return number

    value(tree)
    return any(is_held_out(number) or len(repr(number)) > 15 for number in seen)


def _written(rng: Draw, tree: Expression) -> str:
    """`tree` with signs and only the brackets that precedence needs (sometimes one more)."""
    gap = rng.choice(("", " ", " "))
    signs = {"add": "+", "mul": rng.choice(_TIMES)}
    if signs["mul"] == "x":
        gap = " "

    def text(node: Any, parent: str, right: bool) -> str:
        if not isinstance(node, tuple):
            shown = _spoken(node)
            return f"({shown})" if node < 0 and (right or parent) and rng.random() < 0.8 else shown
        operation = node[0]
        inner = f"{text(node[1], operation, False)}{gap}{signs[operation]}{gap}{text(node[2], operation, True)}"
        needed = (parent == "mul" and operation == "add") or (right and parent == operation)
        return f"({inner})" if needed or (parent and rng.random() < 0.1) else inner

    return text(tree, "", False)


# --- tools -------------------------------------------------------------------------------------------------------


def _toolset(
    rng: Draw, needed: set[str], *, without: set[str] | None = None, forbidden: set[str] | None = None
) -> dict[str, _Tool]:
    """Tools by what they do, in random order: those needed, mostly the other of add and mul, and up to three more.

    `without` are names, `forbidden` operations that must not be there.
    """
    without, forbidden = without or set(), forbidden or set()
    wanted = set(needed)
    if needed and rng.random() < 0.7:
        wanted |= {"add", "mul"} - forbidden
    extra = rng.choice((0, 0, 0, 1, 1, 2, 3))
    if extra and rng.random() < 0.3:
        wanted |= {rng.choice(("sub", "div"))} - forbidden
    lab_names = rng.random() < 0.3  # the lab's own functions, as lab3 describes them
    made: dict[str, _Tool] = {}
    names = set(without)
    opaque = rng.random() < 0.3  # then only the description tells
    for operation in sorted(wanted):
        tool = _calculator(rng, operation, lab_names=lab_names, opaque=opaque, taken=names)
        names.add(tool.name)
        made[operation] = tool
    for _ in range(extra):
        function = _distractor(rng, names)
        names.add(function["name"])
        made[function["name"]] = _Tool(function["name"], (), function)
    order = list(made)
    rng.shuffle(order)
    return {key: made[key] for key in order}


def _calculator(rng: Draw, operation: str, *, lab_names: bool, opaque: bool, taken: set[str]) -> _Tool:
    if lab_names and operation in ("add", "mul"):
        text = phrases.DESCRIPTION[operation][0]
        parameters = ("a", "b")
        described = {"a": ("number", "The first number."), "b": ("number", "The second number.")}
        function = _function(rng, operation, text, described, layout=0)
        return _Tool(operation, parameters, function)
    name = ""
    while not name or name in taken:
        name = _tool_name(rng, operation, opaque=opaque)
    parameters = rng.choice(phrases.PARAMETERS)
    texts = rng.choice(phrases.PARAMETER_TEXT) if rng.random() < 0.5 else ("", "")
    kind = rng.choice(("number", "number", "number", "integer", "float"))
    description = rng.choice(phrases.DESCRIPTION[operation]).format(p=parameters[0], q=parameters[1])
    if not opaque and rng.random() < 0.08:
        description = ""
    described = {key: (kind, text) for key, text in zip(parameters, texts, strict=True)}
    return _Tool(name, parameters, _function(rng, name, description, described))


def _tool_name(rng: Draw, operation: str, *, opaque: bool) -> str:
    if opaque:
        form = rng.choice(phrases.OPAQUE)
        word = "".join(rng.choice(phrases.SYLLABLES) for _ in range(rng.choice((2, 2, 3))))
        return form.format(l=rng.choice(string.ascii_lowercase), d=rng.randrange(1, 100), w=word)
    if operation in phrases.SUB_DIV_NAMES:
        return rng.choice(phrases.SUB_DIV_NAMES[operation])
    core = rng.choice(phrases.NAME_CORE[operation])
    name = rng.choice(phrases.NAME_PREFIX) + core + rng.choice(phrases.NAME_SUFFIX)
    if rng.random() < 0.15:
        first, *rest = name.split("_")
        name = first + "".join(part.capitalize() for part in rest)
    return name


def _distractor(rng: Draw, taken: set[str]) -> dict[str, Any]:
    name, text, parameters, _, _ = rng.choice([other for other in phrases.OTHERS if other[0] not in taken])
    return _function(rng, name, text, parameters)


def _function(
    rng: Draw, name: str, description: str, parameters: dict[str, tuple[str, str]], layout: int | None = None
) -> dict[str, Any]:
    """A function as LMDeploy hands it to the template: description, name, parameters, in this order.

    Layout 0 is the order that lab3 writes a schema in, 1 the one of most examples of the OpenAI API.
    """
    properties = {
        key: {"type": kind} | ({"description": text} if text else {}) for key, (kind, text) in parameters.items()
    }
    required = list(parameters)
    chosen = rng.choice((0, 1, 1)) if layout is None else layout
    schema: dict[str, Any] = (
        {"properties": properties, "required": required, "additionalProperties": False, "type": "object"}
        if chosen == 0
        else {"type": "object", "properties": properties, "required": required}
    )
    return {"description": description or None, "name": name, "parameters": schema}
