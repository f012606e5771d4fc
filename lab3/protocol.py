"""Does a server keep to the OpenAI protocol, beyond what the lab needs? Checks over recorded exchanges.

Each fault belongs to one check: what is broken in a way that another check tells, a check does not judge.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from lab3.evidence import Evidence
from lab3.openai_client import excerpt
from lab3.protocol_answers import (
    FINISH_REASONS,
    REFUSALS,
    SOURCE,
    Answer,
    NotJudged,
    answers_to,
    asked_for,
    choice_fault,
    chunks_of,
    finding,
    finish_fault,
    grows,
    is_text,
    pairs_of,
    read_answer,
    repeated,
    sound_answers,
    stream_fault,
    streams_of,
    tokens_of,
    usage_fault,
)
from lab3.protocol_facts import (
    ALL_CAPABILITIES,
    CAPABILITIES,
    LMDEPLOY_CAPABILITIES,
    LMDEPLOY_LACKS,
    Exchange,
    ProtocolFacts,
)
from lab3.protocol_probe import probe
from lab3.protocol_tools import (
    parallel_calls,
    tool_calls,
    tool_named,
    tool_none,
    tool_required,
    tool_results,
    tool_stream,
)
from lab3.verdicts import Check, Finding

__all__ = [
    "ALL_CAPABILITIES",
    "CAPABILITIES",
    "LMDEPLOY_CAPABILITIES",
    "LMDEPLOY_LACKS",
    "PROTOCOL_CHECKS",
    "Exchange",
    "ProtocolFacts",
    "probe",
]

EPOCH_S = (1_577_836_800, 4_102_444_800)  # `created` is in seconds: from 2020 to 2100
SYSTEM_TOKENS = 8  # that the longer system message has more, at the least

# --- every answer ----------------------------------------------------------------------------------------------------


def _models(facts: ProtocolFacts) -> Finding:
    exchange = next(iter(facts.exchanges.get("models", ())), None)
    if exchange is None:
        raise NotJudged("the list of models was not asked for")
    listing = exchange.body if isinstance(exchange.body, dict) else {}
    data = listing.get("data")
    if exchange.error or exchange.status != 200 or listing.get("object") != "list" or not isinstance(data, list):
        return finding([f"no object `list` with data: {_said(exchange)}"])
    listed = [each.get("id") for each in data if isinstance(each, dict) and each.get("object") == "model"]
    faults = [f"{len(data) - len(listed)} entries are no object `model`"] if len(listed) < len(data) else []
    faults += ["a model without an id"] if not all(map(is_text, listed)) else []
    faults += [f"{excerpt(facts.model, 80)} is not listed"] if not faults and facts.model not in listed else []
    return finding(
        faults, f"{len(data)} listed, {facts.model} among them", expected=facts.model, actual=excerpt(listed)
    )


def _whole(facts: ProtocolFacts) -> Finding:
    asked = asked_for(facts)
    return finding([f"{name}: {each.error}" for name, each in asked if each.error], f"{len(asked)} came whole")


def _good_status(facts: ProtocolFacts) -> Finding:
    whole = [(name, each) for name, each in asked_for(facts) if not each.error]
    if not whole:
        raise NotJudged("no answer came whole")
    faults = [f"{name}: {_said(each)}" for name, each in whole if not chunks_of(each)]
    return finding(faults, f"{len(whole)} requests answered with 200 and JSON")


def _choice(facts: ProtocolFacts) -> Finding:
    alone = [(name, each) for name, each in asked_for(facts) if chunks_of(each) and (each.request.get("n") or 1) == 1]
    if not alone:
        raise NotJudged("there is no good answer")
    faults = [f"{name}: {fault}" for name, each in alone if (fault := choice_fault(each))]
    return finding(faults, f"{len(alone)} answers of one choice, by the assistant")


def _choices(facts: ProtocolFacts) -> Finding:
    exchange = next(iter(facts.exchanges.get("choices", ())), None)
    if exchange is None or not chunks_of(exchange):
        raise NotJudged("the request for several choices got no good answer")
    fault = choice_fault(exchange)
    return finding([fault] if fault else [], f"{exchange.request['n']} choices in one answer")


def _ids(facts: ProtocolFacts) -> Finding:
    answers = sound_answers(facts)
    ids = [answer.chunks[0].get("id") for answer in answers]
    faults = [f"{a.where}: the id is {excerpt(i, 40)}" for a, i in zip(answers, ids, strict=True) if not is_text(i)]
    return finding(faults + repeated(ids), f"{len(ids)} answers, each with an id of its own")


def _envelope(facts: ProtocolFacts) -> Finding:
    answers = sound_answers(facts)
    faults = [f"{answer.where}: {fault}" for answer in answers if (fault := _envelope_fault(answer))]
    return finding(faults, f"{len(answers)} answers say what they are, when they were made and by {facts.model}")


def _envelope_fault(answer: Answer) -> str:
    kind = "chat.completion.chunk" if answer.streamed else "chat.completion"
    for chunk in answer.chunks:
        said, created, model = (chunk.get(key) for key in ("object", "created", "model"))
        if said != kind:
            return f"the object is {excerpt(said, 40)}, not {kind}"
        if type(created) is not int or not EPOCH_S[0] < created < EPOCH_S[1]:
            return f"created is {excerpt(created, 40)}, no time in seconds"
        if model != answer.request.get("model"):
            return f"the model is {excerpt(model, 40)}, not the one that was asked"
    return ""


def _finish_reasons(facts: ProtocolFacts) -> Finding:
    answers = sound_answers(facts)
    faults = [f"{a.where}: finish_reason is {excerpt(a.finish_reason, 40)}" for a in answers if finish_fault(a)]
    seen = sorted({answer.finish_reason for answer in answers} - {None}) if not faults else []
    return finding(faults, f"seen: {', '.join(seen)}", expected=FINISH_REASONS)


def _usage(facts: ProtocolFacts) -> Finding:
    answers = [answer for answer in sound_answers(facts) if not answer.streamed]
    faults = [f"{answer.where}: {fault}" for answer in answers if (fault := usage_fault(answer.usage))]
    prompts: dict[str, set[int]] = {}
    for answer in answers if not faults else ():
        prompt = json.dumps([answer.request.get(key) for key in ("messages", "tools", "tool_choice")])
        prompts.setdefault(prompt, set()).add(tokens_of(answer)[0])
    faults += [f"one prompt counts as {sorted(counts)} tokens" for counts in prompts.values() if len(counts) > 1]
    return finding(faults, f"{len(answers)} usages add up, and one prompt always counts the same")


def _length(facts: ProtocolFacts) -> Finding:
    cut = answers_to(facts, "cut")
    others = [answer for answer in sound_answers(facts) if answer.name not in ("cut", "cut_newer")]
    for answer in others:
        most = answer.request["max_tokens"] * (answer.request.get("n") or 1)
        if not answer.streamed and not usage_fault(answer.usage) and tokens_of(answer)[1] > most:
            return finding([f"{answer.where}: {tokens_of(answer)[1]} tokens, and {most} were allowed"])
    return _cut(cut, cut[0].request["max_tokens"])


def _newer_length(facts: ProtocolFacts) -> Finding:
    cut = answers_to(facts, "cut_newer")
    return _cut(cut, cut[0].request["max_completion_tokens"])


def _cut(answers: list[Answer], limit: int) -> Finding:
    tokens = tokens_of(answers[0])[1]
    faults = [f"finish_reason is {a.finish_reason}, not length" for a in answers if a.finish_reason != "length"]
    faults += [f"{tokens} tokens"] if tokens != limit else []
    return finding(faults, f"cut after {tokens} tokens, which finish_reason tells", expected=limit, actual=tokens)


def _stops(name: str) -> Callable[[ProtocolFacts], Finding]:
    def judge(facts: ProtocolFacts) -> Finding:
        whole, answers = answers_to(facts, "count")[0].text, answers_to(facts, name)
        stop = answers[0].request["stop"][0]
        before = whole[: whole.find(stop)].rstrip()  # a token of the stop string may have begun with the space
        faults = []
        for answer in answers:
            if stop in answer.text:
                faults.append(f"{answer.where}: {excerpt(stop, 20)!r} is in the text {excerpt(answer.text, 60)!r}")
            elif answer.finish_reason != "stop":
                faults.append(f"{answer.where}: finish_reason is {answer.finish_reason}, not stop")
            elif answer.text.rstrip() != before:
                faults.append(f"{answer.where}: {excerpt(answer.text, 60)!r} is not what came before the stop")
        return finding(faults, f"{excerpt(before, 60)!r} ends before {excerpt(stop, 20)!r}", expected=excerpt(before))

    return judge


_NO_LETTER = "\ufffd"  # what a decoder writes for bytes that are none


def _unicode(facts: ProtocolFacts) -> Finding:
    answers = sound_answers(facts)
    mangled = [a for a in answers if _is_mangled(a.text) and not _is_the_models_own(a, answers)]
    faults = [f"{a.where}: broken letters in {excerpt(a.text, 60)!r}" for a in mangled]
    told = next((a.text for a in answers if a.name == "unicode"), "")
    return finding(faults, f"no broken letter in {len(answers)} answers; to Chinese and emoji: {excerpt(told, 60)!r}")


def _is_the_models_own(answer: Answer, answers: Sequence[Answer]) -> bool:
    """A model may write bytes that are no letter: they are missing, streamed or not, between letters that are whole.

    A server that breaks letters does so where it cuts a stream, or in all that take several tokens.
    """
    broken = answer.text.count(_NO_LETTER)
    same = [a for a in answers if a.name == answer.name and _is_same(a, answer) and a.text.count(_NO_LETTER) == broken]
    whole = any(ord(letter) > 0xFFFF for letter in answer.text)  # four bytes, several tokens in most vocabularies
    surrogates = any(0xD800 <= ord(letter) <= 0xDFFF for letter in answer.text)
    return whole and not surrogates and {a.streamed for a in same} == {True, False}


def _history(facts: ProtocolFacts) -> Finding:
    answers = answers_to(facts, "history")
    messages = [len(answer.request["messages"]) for answer in answers]
    told = ", ".join(f"{n} → {tokens_of(a)[0]}" for n, a in zip(messages, answers, strict=True))
    return finding([f"messages → tokens: {told}"] if not grows(answers) else [], f"messages → tokens: {told}")


def _system(facts: ProtocolFacts) -> Finding:
    short, long = (tokens_of(answer)[0] for answer in answers_to(facts, "system"))
    told = f"{short} tokens with a short system message, {long} with a long one"
    return finding([told] if long - short < SYSTEM_TOKENS else [], told)


# --- streams ---------------------------------------------------------------------------------------------------------


def _stream_shape(facts: ProtocolFacts) -> Finding:
    streams = streams_of(facts)
    faults = [f"{answer.name}: {fault}" for answer in streams if (fault := stream_fault(answer))]
    return finding(faults, f"{len(streams)} streams, each of one id, one finish_reason and a [DONE]")


def _stream_same(facts: ProtocolFacts) -> Finding:
    pairs = [pair for name in ("plain", "cut", "unicode") for pair in pairs_of(facts, name)]
    faults = [
        f"{streamed.name}: streamed {excerpt(streamed.text, 60)!r} ({streamed.finish_reason}), "
        f"unstreamed {excerpt(whole.text, 60)!r} ({whole.finish_reason})"
        for whole, streamed in pairs
        if not _is_mangled(whole.text + streamed.text) and not _is_same(whole, streamed)
    ]
    return finding(faults, f"{len(pairs)} streamed answers are the unstreamed ones")


def _is_same(one: Answer, other: Answer) -> bool:
    short, long = sorted((one.text, other.text), key=len)
    # Where max_tokens cuts in the middle of a letter, how many letters before it are held back is the server's choice.
    cut = one.finish_reason == "length" and not long.isascii()
    return one.finish_reason == other.finish_reason and (long.startswith(short) if cut else short == long)


def _stream_usage(facts: ProtocolFacts) -> Finding:
    faults = []
    for answer in streams_of(facts):
        if stream_fault(answer):
            continue
        wanted = bool((answer.request.get("stream_options") or {}).get("include_usage"))
        early = [chunk for chunk in (answer.chunks[:-1] if wanted else answer.chunks) if chunk.get("usage") is not None]
        if early:
            faults.append(f"{answer.name}: usage in {'another chunk than the last' if wanted else 'a stream unasked'}")
        elif wanted and (answer.chunks[-1]["choices"] or usage_fault(answer.usage)):
            faults.append(f"{answer.name}: the last chunk is not one of usage alone: {excerpt(answer.chunks[-1], 100)}")
    for whole, streamed in pairs_of(facts, "plain") if not faults else ():
        if tokens_of(whole) != tokens_of(streamed):
            faults.append(f"{streamed.name}: streamed {tokens_of(streamed)} tokens, unstreamed {tokens_of(whole)}")
    return finding(faults, "the last chunk alone tells the usage, which is the unstreamed answer's")


# --- bad requests ----------------------------------------------------------------------------------------------------


def _refuses(name: str) -> Callable[[ProtocolFacts], Finding]:
    def judge(facts: ProtocolFacts) -> Finding:
        refused = [(which, each) for which in REFUSALS[name] for each in facts.exchanges.get(which, ())]
        if not refused:
            raise NotJudged("it was not asked")
        statuses: Sequence[int] = (400, 404) if name == "unknown_model" else range(400, 500)
        faults = [f"{which}: {_said(each)}" for which, each in refused if not _is_refusal(each, statuses)]
        return finding(faults, "; ".join(_said(each) for _, each in refused), expected="4xx with a message")

    return judge


def _context(facts: ProtocolFacts) -> Finding:
    exchange = next(iter(facts.exchanges.get("context", ())), None)
    if exchange is None:
        raise NotJudged("it was not asked")
    answer = read_answer("context", exchange)
    good = _is_refusal(exchange, range(400, 500)) or (answer is not None and answer.finish_reason == "length")
    return finding(
        [] if good else [_said(exchange)], _said(exchange), expected="4xx with a message, or a finish by length"
    )


def _still_answers(facts: ProtocolFacts) -> Finding:
    exchange = next(iter(facts.exchanges.get("after", ())), None)
    if exchange is None:
        raise NotJudged("it was not asked")
    answer = read_answer("after", exchange)
    good = answer is not None and bool(answer.text.strip())
    return finding([] if good else [_said(exchange)], f"it said {excerpt(answer.text if answer else '', 60)!r}")


def _is_refusal(exchange: Exchange, statuses: Sequence[int]) -> bool:
    return not exchange.error and exchange.status in statuses and bool(_message(exchange.body))


def _message(body: Any) -> str:
    """The text of an error, as LMDeploy puts it or as OpenAI does."""
    told = body if isinstance(body, dict) else {}
    inner = told.get("error")
    found = told.get("message") or (inner.get("message") if isinstance(inner, dict) else None)
    return found if isinstance(found, str) else ""


def _said(exchange: Exchange) -> str:
    """What came of a request that got no good answer, or should have got none, in a few words."""
    if exchange.error:
        return exchange.error
    if answer := read_answer("", exchange):
        return f"status {exchange.status}, answered {excerpt(answer.text, 60)!r} ({excerpt(answer.finish_reason, 40)})"
    errors = [event for event in exchange.events if isinstance(event, dict) and event.get("error") is not None]
    told = next((message for each in (exchange.body, *errors) if (message := _message(each))), None)
    if told is None:
        told = f"{len(exchange.events)} events" if exchange.events else excerpt(exchange.body, 100)
    return f"status {exchange.status}, {excerpt(told, 150)}"


def _is_mangled(text: str) -> bool:
    """With a letter that stands for lost bytes, or half of a pair."""
    return _NO_LETTER in text or any("\ud800" <= letter <= "\udfff" for letter in text)


def _check(id: str, title: str, title_zh: str, judge: Callable[[ProtocolFacts], Finding], *needs: str) -> Check:
    def judged(evidence: Evidence) -> Finding:
        facts = _facts(evidence)
        for capability in needs:
            if capability not in facts.capabilities:
                meaning = CAPABILITIES[capability]
                return Finding("unknown", f"the server does not declare {capability}", SOURCE, expected=meaning)
        try:
            return judge(facts)
        except NotJudged as why:
            return Finding("unknown", f"not judged: {why}", SOURCE)

    return Check(f"protocol.{id}", 0, title, title_zh, 0, "protocol", judged)


def _facts(evidence: Evidence) -> ProtocolFacts:
    if evidence.protocol is None:
        raise ValueError("a check was asked to judge a section that is missing")
    return evidence.protocol


# fmt: off
PROTOCOL_CHECKS: tuple[Check, ...] = (
    _check("models", "The model is listed", "模型列表中有该模型", _models),
    _check("whole", "Every answer comes whole and in time", "回答完整且及时", _whole),
    _check("status", "Every good request is answered", "合法请求均得到回答", _good_status),
    _check("choice", "An answer is one choice by the assistant", "回答为助手的单个 choice", _choice),
    _check("n", "Several choices in one answer", "一次返回多个 choice", _choices, "n"),
    _check("ids", "Every answer has an id of its own", "每个回答的 id 唯一", _ids),
    _check("envelope", "Object, time and model are told", "object、created、model 正确", _envelope),
    _check("finish_reason", "The finish_reason is one of the protocol's", "finish_reason 取值合法", _finish_reasons),
    _check("usage", "The usage adds up", "usage 计数自洽", _usage),
    _check("length", "max_tokens cuts the answer", "max_tokens 截断回答", _length),
    _check("max_completion_tokens", "max_completion_tokens cuts the answer", "max_completion_tokens 截断回答",
           _newer_length, "max_completion_tokens"),
    _check("stop", "A stop token ends the answer", "停止词（单个 token）生效", _stops("stop"), "stop"),
    _check("stop_strings", "A stop string of several tokens ends the answer", "停止串（多个 token）生效",
           _stops("stop_strings"), "stop_strings"),
    _check("unicode", "No letter is broken", "中文与表情符号无乱码", _unicode),
    _check("history", "A long history is read", "读取长对话历史", _history),
    _check("system", "The system message is read", "读取 system 消息", _system),
    _check("stream_shape", "A stream has the right shape", "流式响应格式正确", _stream_shape, "stream"),
    _check("stream_same", "A streamed answer is the unstreamed one", "流式与非流式回答一致", _stream_same, "stream"),
    _check("stream_usage", "A stream ends with the usage", "流末尾给出 usage", _stream_usage, "stream", "stream_usage"),
    _check("tool_calls", "Tool calls have the right shape", "工具调用格式正确", tool_calls, "tools"),
    _check("tool_stream", "A streamed call is the unstreamed one", "流式与非流式工具调用一致", tool_stream,
           "tools", "stream"),
    _check("tool_none", "tool_choice none makes no call", "tool_choice none 不调用工具",
           tool_none, "tool_choice_none"),
    _check("tool_required", "tool_choice required makes a call that fits", "tool_choice required 生成合规调用",
           tool_required, "tool_choice_required"),
    _check("tool_named", "tool_choice names the function", "tool_choice 指定函数", tool_named, "tool_choice_named"),
    _check("parallel_calls", "Two calls in one answer", "一次回答中两个调用", parallel_calls, "parallel_calls"),
    _check("tool_results", "Results of tools are read", "读取工具返回结果", tool_results, "tools"),
    _check("unknown_model", "An unknown model is refused", "拒绝未知模型", _refuses("unknown_model"),
           "validates_requests"),
    _check("malformed_json", "Malformed JSON is refused", "拒绝非法 JSON", _refuses("malformed_json"),
           "validates_requests"),
    _check("missing_messages", "A request without messages is refused", "拒绝缺少 messages 的请求",
           _refuses("missing_messages"), "validates_requests"),
    _check("wrong_types", "Wrong types are refused", "拒绝类型错误", _refuses("wrong_types"), "validates_requests"),
    _check("max_tokens_range", "A negative max_tokens is refused", "拒绝负的 max_tokens", _refuses("max_tokens_range"),
           "validates_requests"),
    _check("sampling_range", "Temperature and top_p out of range are refused", "拒绝越界的采样参数",
           _refuses("sampling_range"), "validates_requests"),
    _check("unknown_role", "An unknown role is refused", "拒绝未知角色", _refuses("unknown_role"), "validates_roles"),
    _check("unknown_function", "A tool_choice that no tool has is refused", "拒绝指定不存在的函数",
           _refuses("unknown_function"), "tool_choice_named"),
    _check("context", "Too long a prompt is refused", "拒绝超长输入", _context),
    _check("still_answers", "After all this the server still answers", "之后服务仍可用", _still_answers),
)
# fmt: on
