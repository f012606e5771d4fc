"""Checks on function calling: which server, which calls, whether results follow, and which model made them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from lab3.grading.arithmetic import Operation, among, computed, numbers_of, operation_of, read_expression
from lab3.reports.checks import Finding, against, came_up, errors_in, failed, not_shown, passed, unsure
from lab3.reports.facts import ReportFacts, printed_after
from lab3.reports.facts_models import last_part, model_name, same_folder, sizes_in
from lab3.reports.model import ChatSeen, CodeSeen, CompletionSeen, Place, Printed
from lab3.reports.understanding_words import sentences_of

_RAW_CALL = re.compile(
    r"<\|action_start\|>|<\|plugin\|>|\"name\"\s*:\s*\"\w+\"\s*,\s*\"(?:parameters|arguments)\"", re.A
)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?", re.A)
_RESULT = re.compile(r"(?:[\w\u4e00-\u9fff +*×()]*[:=：]\s*)?(-?\d+(?:\.\d+)?)(?:\s{2,}\S{1,2})?$", re.A)
_USES = re.compile(
    r"使用|采用|用(?!于)|基于|换成|调用|部署|启动|加载|served?|serv(?:e|ing)|us(?:e|ed|ing)|with|on the|run",
    re.I | re.A,
)
_NOT_CLAIMED = re.compile(
    r"没有|不是|不用|不能|无法|效果不好|太小|建议|如果|若|instead of|rather than|\bnot\b|could|would|比|than|vs",
    re.I | re.A,
)


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call of a printed completion; `operation` None: it is neither sum nor product."""

    completion: CompletionSeen
    operation: Operation | None
    name: str
    numbers: tuple[float, ...]
    wrong: str = ""  # why its arguments are none


def tools_server(facts: ReportFacts) -> Finding:
    """The server that the function calls went to."""
    models = [each for each in facts.completions if each.model and each.place.block in facts.tools_blocks]
    for server in reversed(facts.servers):
        if (
            server.model
            and models
            and any(same_folder(each.model or "", server.model.text, read=True) for each in models)
        ):
            return passed(f"{server.model.last} is served and answers", [server.place, models[0].place])
    started = came_up(facts, tools=True)
    if facts.tool_servers:
        server = facts.tool_servers[-1]
        if errors := [
            each for each in errors_in(facts, tools=True) if each.place.block == server.place.block and not started
        ]:
            return failed(
                "not_achieved", "the server for function calls ended with an error", [server.place, errors[0].place]
            )
        return passed(server.seen.text[:120], [server.place, *(each.place for each in started[:1])])
    if started:
        return passed(started[0].place.quote[:120], [started[0].place])
    calls = _calls(facts)
    if calls and facts.servers:
        answering = facts.servers[-1]
        if answering.model is None or not calls[0].completion.model:
            return unsure(
                "the calls are shown, and not which server they went to",
                places=[calls[0].completion.place, answering.place],
                review="please say which server answered",
            )
        if model_name(calls[0].completion.model).same_size(answering.model) is not False:
            return passed("the server of the first task answers", [answering.place, calls[0].completion.place])
        return unsure(
            "the calls are shown, and not the server that they went to",
            "no server of this model is shown",
            [calls[0].completion.place],
        )
    if calls:
        return unsure(
            "the calls are shown, and no server", "please say which server answered", [calls[0].completion.place]
        )
    return not_shown(facts, "the server for function calls", topics=("serve", "output"), tools=True)


def tool_calls(facts: ReportFacts) -> Finding:
    """The model called `add` and `mul` with JSON arguments."""
    calls = _calls(facts)
    good = [each for each in calls if not each.wrong and not each.completion.doubt]
    places = [each.completion.place for each in calls]
    done = {
        operation: next((each for each in good if each.operation == operation), None) for operation in ("add", "mul")
    }
    if done["add"] and done["mul"]:
        both = [each for each in (done["add"], done["mul"]) if each]
        return passed(
            "; ".join(f"{each.name}{_shown(each.numbers)}" for each in both), [each.completion.place for each in both]
        )
    if not calls:
        return _no_calls(facts)
    if doubt := next(
        (each.completion.doubt or each.wrong for each in calls if each.completion.doubt or each.wrong), ""
    ):
        broken = [each for each in calls if each.wrong and not each.completion.doubt and each.completion.complete]
        if broken and all(each.completion.place.picture is None for each in broken):
            return against(
                "mistaken",
                f"the arguments of {broken[0].name} are no JSON object of numbers",
                [broken[0].completion.place],
                actual=broken[0].wrong,
            )
        return unsure("calls are shown, and cannot be read with certainty", doubt, places)
    missing = "mul" if done["add"] else "add" if done["mul"] else "add and mul"
    if any(not each.complete for each in facts.completions) or _hidden_output(facts):
        return unsure(f"no call of {missing} was read", "an output is cut off or cannot be read", places)
    unread = [each for each in facts.completions if each.finish_reason == "tool_calls" and not each.tool_calls]
    if unread or any(each.doubt for each in facts.completions):
        return unsure(f"no call of {missing} was read", "a call is shown, and cannot be read with certainty", places)
    spoken = [each for each in facts.completions if not each.tool_calls and each.place.block in facts.tools_blocks]
    if spoken:
        return failed("not_achieved", f"the model answered without calling {missing}", [spoken[0].place, *places])
    others = {each.operation for each in good} - {"add", "mul"}
    if others:
        return unsure(
            f"the tools called are {', '.join(each.name for each in good)}", f"no call is clearly of {missing}", places
        )
    return failed("missing", f"no call of {missing} is shown", places)


def tool_results(facts: ReportFacts) -> Finding:
    """The results are those of the calls, and the second round follows from the first."""
    calls = [each for each in _calls(facts) if not each.completion.doubt and not each.wrong]
    pairs = [(each, value, place) for each in calls for value, place in _result(facts, each)]
    if not pairs:
        shown = [each.completion.place for each in calls]
        if calls:
            return unsure("no result of the calls is shown", "please look for the results", shown)
        if any(each.tool_calls for each in facts.completions):
            return unsure(
                "the calls cannot be read with certainty",
                "please compare calls and results",
                [each.place for each in facts.completions],
            )
        hidden = _no_calls(facts)
        return (
            hidden
            if hidden.status == "unknown" or hidden.kind == "not_achieved"
            else failed("missing", "no result of a call is shown")
        )
    for call, value, place in pairs:
        expected = computed(call.operation, call.numbers)
        if expected is not None and not among(value, (expected,)):
            return against(
                "contradiction", f"{call.name}{_shown(call.numbers)} is {expected:g}, and {value:g} is shown",
                [call.completion.place, place], expected=f"{expected:g}", actual=f"{value:g}",
            )  # fmt: skip
    broken = _broken_chain(facts, calls, pairs)
    if broken is not None:
        return broken
    if len({call.operation for call, _, _ in pairs if call.operation in ("add", "mul")}) < 2:
        return unsure("only one result is shown", "please look for the other result", [place for _, _, place in pairs])
    told = "; ".join(f"{call.name}{_shown(call.numbers)} = {value:g}" for call, value, _ in pairs)
    return passed(told, [each for call, _, place in pairs for each in (call.completion.place, place)])


def tools_model(facts: ReportFacts) -> Finding:
    """The calls were made by the model that the report says."""
    mine = [each for each in facts.completions if each.model and each.place.block in facts.tools_blocks]
    models = [each for each in mine if not each.doubt]
    if mine and not models:
        return unsure("the calls cannot be read with certainty", mine[0].doubt, [each.place for each in mine])
    if not models:
        found = [each.completion.place for each in _calls(facts)]
        if found:
            return _served_for_calls(facts, found)
        hidden = _no_calls(facts)
        return (
            hidden
            if hidden.kind == "not_achieved" or hidden.status == "unknown"
            else failed("missing", "no call of a model is shown")
        )
    names = [model_name(each.model or "") for each in models]
    if len({name.size for name in names if name.size}) > 1:
        return unsure(
            "the calls name several models", "please say which model was to call", [each.place for each in models]
        )
    name, place = names[0], models[0].place
    for claimed, where in _claims(facts):
        if name.size and name.size not in claimed:
            said, called = ", ".join(sorted(claimed)), last_part(name.text)
            told = f"the report says {said}, and {called} made the calls"
            return against("contradiction", told, [where, place], expected=said, actual=called)
    servers = [each for each in facts.servers if each.model]
    same = [each for each in servers if each.model and same_folder(name.text, each.model.text, read=True)]
    if same:
        return passed(f"{last_part(name.text)}, as it is served", [place, same[-1].place])
    own = [each for each in facts.tool_servers if each.model]
    if own and own[-1].model and own[-1].model.same_size(name) is False:
        return against(
            "contradiction", f"{own[-1].model.last} is served for the calls, and {last_part(name.text)} made them",
            [own[-1].place, place], expected=own[-1].model.last, actual=last_part(name.text),
        )  # fmt: skip
    if servers and name.size and all(each.model and each.model.same_size(name) is False for each in servers):
        return unsure(
            f"{last_part(name.text)} made the calls, and is not seen to be served",
            "please say which server answered",
            [place, servers[-1].place],
        )
    if any(each.model and each.model.same_size(name) for each in servers):
        same_size = next(each for each in servers if each.model and each.model.same_size(name))
        if same_size.model and same_size.model.quantized != name.quantized:
            return unsure(
                f"{last_part(name.text)} made the calls, and {same_size.model.last} is served",
                "one is quantized, the other is not",
                [place, same_size.place],
            )
        return passed(f"{last_part(name.text)}, of the size that is served", [place, same_size.place])
    return unsure(f"{last_part(name.text)} made the calls, and no server tells its model", places=[place])


# -------------------------------------------------------------------------------------------------------------- helpers


def _served_for_calls(facts: ReportFacts, calls: Sequence[Place]) -> Finding:
    """Who made calls that do not tell it: the one model that is served for them, if the text claims no other."""
    served = [each for each in facts.tool_servers if each.model and not each.cut]
    names = {each.model.last for each in served if each.model}
    size = served[-1].model.size if served and served[-1].model else ""
    others = [place for claimed, place in _claims(facts) if size and size not in claimed]
    if len(names) == 1 and not others:
        return passed(f"{names.pop()} is served for the calls", [served[-1].place, calls[0]])
    return unsure("no completion tells its model", places=[*calls, *others])


def _calls(facts: ReportFacts) -> tuple[Call, ...]:
    return tuple(
        _call(completion, each.name, each.arguments)
        for completion in facts.completions
        for each in completion.tool_calls
    )


def _call(completion: CompletionSeen, name: str, arguments: str) -> Call:
    operation = operation_of(name)
    try:
        read = json.loads(arguments)
    except ValueError:
        return Call(
            completion=completion, operation=operation, name=name, numbers=(), wrong=arguments[:80] or "no arguments"
        )
    numbers = numbers_of(read) if isinstance(read, dict) else ()
    if len(numbers) < 2 and isinstance(read, dict):
        texts = [str(each) for each in read.values()]
        numbers = tuple(float(each) for each in texts if _NUMBER.fullmatch(each.strip()))
    wrong = "" if len(numbers) >= 2 else arguments[:80]
    return Call(completion=completion, operation=operation, name=name, numbers=numbers, wrong=wrong)


def _result(facts: ReportFacts, call: Call) -> Iterable[tuple[float, Place]]:
    """The number that was printed after a call: the right one if it is there, else the first."""
    after = printed_after(facts, call.completion)
    if len(call.completion.tool_calls) > 1:
        which = [each.name for each in call.completion.tool_calls].index(call.name)
        after = after[which : which + 1]
    found = [(value, each.place) for each in after if (value := _value(each)) is not None]
    expected = computed(call.operation, call.numbers)
    right = [each for each in found if expected is not None and among(each[0], (expected,))]
    yield from (right or found)[:1]


def _value(printed: Printed) -> float | None:
    """The number that is all of a line, but for a name before it and a speck that OCR took for a letter."""
    match = _RESULT.match(printed.text.strip())
    return float(match[1]) if match else None


def _broken_chain(
    facts: ReportFacts, calls: Sequence[Call], pairs: Sequence[tuple[Call, float, Place]]
) -> Finding | None:
    """Where the second call was to go on with the first one's result, and does not."""
    for (one, value, _), (two, _, _) in pairwise(pairs):
        if one.completion is two.completion or among(value, two.numbers):
            continue
        if one.completion.place.block != two.completion.place.block:
            continue
        places = [one.completion.place, two.completion.place]
        told = f"{one.name} gives {value:g}, and {two.name}{_shown(two.numbers)} does not take it"
        spoken = [float(each) for each in _NUMBER.findall(two.completion.content or "")]
        asked = _asked(facts)
        needed = asked is not None and among(value, asked)
        if among(value, spoken) or needed:
            return against(
                "contradiction", told, places, expected=f"{value:g} among the arguments", actual=_shown(two.numbers)
            )
        if asked is None:
            return unsure(told, "please say whether the second call was to use the first one's result", places)
    return None


def _asked(facts: ReportFacts) -> tuple[float, ...] | None:
    """The numbers of the second step of the expression that the report or its script asks for."""
    texts = [each.text for each in facts.of(CodeSeen)]
    texts += [each.prompt for each in facts.of(ChatSeen) if each.place.block in facts.tools_blocks]
    texts += [
        facts.report.blocks[number].text
        for number in sorted(facts.tools_blocks)
        if facts.report.blocks[number].kind != "output"
    ]
    for text in texts:
        for sentence in (text, *text.splitlines()):
            read = read_expression(sentence)
            if read is not None and len(read.calls) > 1:
                return read.calls[-1].numbers
    return None


def _no_calls(facts: ReportFacts) -> Finding:
    raw = [each for each in facts.completions if each.content and _RAW_CALL.search(each.content)]
    if raw:
        return unsure(
            "the call stands in the answer's text", "the server did not read it as a call: please judge", [raw[0].place]
        )
    mine = [each for each in facts.completions if each.place.block in facts.tools_blocks]
    if any(each.doubt or not each.complete or each.finish_reason == "tool_calls" for each in mine):
        return unsure(
            "no call was read", "an output is cut off or cannot be read with certainty", [each.place for each in mine]
        )
    if mine and not _hidden_output(facts):
        return failed("not_achieved", "the model answered without calling a tool", [mine[0].place])
    if errors := errors_in(facts, tools=True):
        return failed(
            "not_achieved", "the script ended with an error", [errors[0].place], actual=errors[0].place.quote[:120]
        )
    return not_shown(facts, "the function calls", topics=("output", "conversation", "script", "serve"), tools=True)


def _hidden_output(facts: ReportFacts) -> bool:
    return any(each.tools for each in facts.hidden)


def _claims(facts: ReportFacts) -> Iterable[tuple[frozenset[str], Place]]:
    """Which sizes of model the text on function calls says it uses."""
    for number in sorted(facts.tools_blocks):
        block = facts.report.blocks[number]
        if number in facts.theirs or block.kind not in ("heading", "paragraph", "list_item"):
            continue
        for each in sentences_of(block.text):
            sentence = each.written
            sizes = sizes_in(sentence)
            parts = [part for part in re.split(r"[,，;；]", sentence) if sizes_in(part)]
            said = bool(_USES.search(sentence)) or block.kind == "heading"
            if sizes and said and not any(_NOT_CLAIMED.search(part) for part in parts):
                yield sizes, facts.place(number, sentence)


def _shown(numbers: Sequence[float]) -> str:
    return f"({', '.join(f'{each:g}' for each in numbers)})"
