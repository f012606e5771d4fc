"""Checks on serving: the command, the server's start, the conversation, and that command, log and picture agree."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise

from lab3.reports.checks import Finding, against, came_up, errors_in, failed, not_shown, passed, refusal, unsure
from lab3.reports.facts import ReportFacts
from lab3.reports.facts_commands import DEFAULT_PORT, LabCommand
from lab3.reports.facts_models import last_part, model_name, same_folder
from lab3.reports.model import ChatSeen, CodeSeen, LogLine, Place

_RATIO = re.compile(r"cache[_-]max[_-]entry[_-]count\s*[=:：为是]?\s*(0?\.\d+)", re.I | re.A)
_POLICY = re.compile(r"quant[_-]policy\s*[=:：为是]?\s*([048])(?![\d.])", re.I | re.A)
_CODED_POLICY = re.compile(r"quant_policy\s*=\s*[48]\b", re.A)
READS_AS_TEXT = 0.3  # confidence: a letter misread in a long answer takes nothing from a conversation
_ENGINE = re.compile(r"TurbomindEngineConfig|PytorchEngineConfig|engine_cfg|cache_max_entry_count", re.A)
_BROKEN_ANSWER = re.compile(r"^\s*$|internal server error|connection (?:refused|error)|traceback", re.I | re.A)


def serve_command(facts: ReportFacts) -> Finding:
    """The W4A16 model is served with a quantized KV cache."""
    server = facts.main_server()
    if server is None:
        logs = [each.place for each in came_up(facts, tools=False)]
        if logs:
            return unsure("a server is seen, and its command is not", "please look for the command above the log", logs)
        return not_shown(facts, "the command that serves the model", topics=("serve",), tools=False)
    quantized = facts.is_quantized(server)
    lacking = []
    if quantized is False:
        lacking.append("the model is not the quantized one")
    if not server.kv_policy:
        lacking.append("no `--quant-policy 4` or `8`" if server.kv_policy is None else "`--quant-policy 0`")
    expected = "a W4A16 model, --quant-policy 4 or 8"
    policy = "not given" if server.kv_policy is None else str(server.kv_policy)
    actual = f"{server.model.last if server.model else '?'}, --quant-policy {policy}"
    if not lacking and quantized is None:
        return unsure("the model that is served is not known", "its name is not seen", [server.place], actual=actual)
    if not lacking and (refused := refusal(server)) and not came_up(facts, tools=False):
        return unsure(actual, refused, [server.place], expected=expected, actual=actual)
    if not lacking:
        return passed(actual, [server.place], expected=expected, actual=actual)
    reason = f"the server's command: {', and '.join(lacking)}"
    if server.cut or server.model is None:
        why = refusal(server) or "the command is cut off"
        return unsure(reason, why, [server.place], expected=expected, actual=actual)
    if coded := [each for each in facts.of(CodeSeen) if _CODED_POLICY.search(each.text)]:
        return unsure(reason, "the policy is set in Python", [server.place, coded[0].place])
    if refused := refusal(server):
        reason += f" ({refused})"
    others = [each for each in facts.hidden if not each.tools and "serve" in each.topics]
    if others:
        return unsure(
            reason,
            "a picture that cannot be read may show the command",
            [server.place, *(each.place for each in others)],
        )
    return against("mistaken", reason, [server.place], expected=expected, actual=actual)


def server_started(facts: ReportFacts) -> Finding:
    """The server came up."""
    up = came_up(facts, tools=False)
    if up:
        return passed(up[0].place.quote[:120], [up[0].place])
    errors = errors_in(facts, tools=False)
    if errors and facts.servers and errors[0].place.block >= facts.servers[0].place.block:
        quote = errors[0].place.quote[:120]
        return failed("not_achieved", "the server ended with an error", [errors[0].place], actual=quote)
    answered = [each for each in facts.of(ChatSeen) if each.answer and each.where in ("page", "code")]
    if answered and facts.lab_servers:
        return passed("it is not seen to start, and it answered", [answered[0].place, facts.lab_servers[-1].place])
    if typed := [each for each in facts.lab_servers if each.read]:
        why = "the server's command is shown, and not what it printed"
        return unsure(why, "the picture may end before the server's start", [typed[-1].place])
    return not_shown(facts, "the start of the server", topics=("serve",), tools=False)


def conversation(facts: ReportFacts) -> Finding:
    """One conversation with the served model: a question and its answer."""
    chats = [each for each in facts.of(ChatSeen) if each.place.block not in facts.tools_blocks or each.where != "code"]
    answered = [each for each in chats if not _BROKEN_ANSWER.search(each.answer)]
    served = [each for each in answered if _with_server(facts, each)]
    full = [each for each in served if each.prompt.strip()]
    if full:
        told = f"{_short(full[0].prompt)} → {_short(full[0].answer)}"
        return replace(passed(told, [full[0].place]), legible=READS_AS_TEXT)
    spoken = [each for each in facts.completions if each.content and not each.tool_calls and not each.doubt]
    spoken = [each for each in spoken if each.place.block not in facts.tools_blocks]
    if spoken:
        return passed(_short(spoken[0].content or ""), [spoken[0].place])
    if served:
        return unsure("an answer is shown, and no question", "please look at the page", [each.place for each in served])
    if answered:
        why = "a conversation in `lmdeploy chat` is shown, which needs no server"
        return unsure(why, "please say whether a conversation with the server is shown", [answered[0].place])
    if chats:
        why = "a question is shown, and no answer was read"
        return unsure(why, "please look for the answer", [each.place for each in chats])
    if (errors := errors_in(facts, tools=False)) and not came_up(facts, tools=False):
        return failed("not_achieved", "there is no conversation: the server ended with an error", [errors[0].place])
    return not_shown(facts, "a conversation with the model", topics=("conversation",), tools=False)


def flags_agree(facts: ReportFacts) -> Finding:
    """Model, flags, ratio and port are the same in command, start-up log, page and text."""
    agreed: list[Place] = []
    told: list[str] = []
    doubtful: Finding | None = None
    for found in (*_ports(facts), *_configs(facts), *_pages(facts), *_doubles(facts)):
        if found.status == "fail":
            return found
        if found.status == "unknown":
            doubtful = doubtful or found
        else:
            agreed += found.places
            told.append(found.reason)
    if doubtful is not None:
        return doubtful
    if not agreed:
        return unsure("no two places of the report tell the same flag")
    return passed("; ".join(dict.fromkeys(told)), agreed)


# -------------------------------------------------------------------------------------------------------------- helpers


def _with_server(facts: ReportFacts, chat: ChatSeen) -> bool:
    """A page or a script asks the server; in a terminal the command before it tells."""
    if chat.where != "terminal":
        return True
    order = next(number for number, each in enumerate(facts.readings) if each is chat)
    before = [
        each for each in facts.commands if each.order < order and each.kind in ("chat", "client", "serve", "script")
    ]
    return bool(before) and before[-1].kind in ("client", "script")


def _ports(facts: ReportFacts) -> Iterable[Finding]:
    """The port that the log tells, against that of the command in the same picture or block."""
    up = (*came_up(facts, tools=False), *came_up(facts, tools=True))
    for line in facts.of(LogLine):
        if line.event != "listening" or line.port is None or line not in up:
            continue
        servers = [each for each in facts.servers if each.place.block == line.place.block and not each.cut]
        if not servers:
            continue
        ports = {each.port or DEFAULT_PORT for each in servers}
        places = [servers[-1].place, line.place]
        if line.port in ports:
            yield passed(f"port {line.port}", places)
        elif len(servers) == 1 and (servers[0].port is not None):
            yield against(
                "contradiction", f"the command asks for port {min(ports)}, and the log tells {line.port}", places,
                expected=str(min(ports)), actual=str(line.port),
            )  # fmt: skip


def _configs(facts: ReportFacts) -> Iterable[Finding]:
    """The engine's configuration, as LMDeploy prints it, against the command in the same picture or block."""
    for line in (*facts.of(LogLine),):
        quote = line.place.quote
        if not _ENGINE.search(quote):
            continue
        commands = [
            each for each in facts.commands if each.kind in ("chat", "serve") and each.place.block == line.place.block
        ]
        if len(commands) != 1:
            continue
        command = commands[0]
        for flag, pattern, given in (
            ("--cache-max-entry-count", _RATIO, command.ratio),
            ("--quant-policy", _POLICY, command.kv_policy),
        ):
            match = pattern.search(quote)
            if match is None or given is None:
                continue
            places = [command.place, line.place]
            if abs(float(match[1]) - given) < 1e-6:
                yield passed(f"{flag} {given:g}", places)
            else:
                yield against(
                    "contradiction", f"the command has {flag} {given:g}, and the log tells {match[1]}", places,
                    expected=f"{given:g}", actual=match[1],
                )  # fmt: skip


def _pages(facts: ReportFacts) -> Iterable[Finding]:
    """The model that a completion of the first task names, against the server's."""
    server = facts.main_server()
    if server is None or server.model is None:
        return
    for each in facts.completions:
        if each.model is None or each.doubt or each.place.block in facts.tools_blocks:
            continue
        places = [server.place, each.place]
        if same_folder(each.model, server.model.text, read=True):
            yield passed(f"model {last_part(each.model)}", places)
        elif model_name(each.model).same_size(server.model) is False:
            served = [one for one in facts.servers if one.model and same_folder(each.model, one.model.text, read=True)]
            if not served:
                yield against(
                    "contradiction", f"{last_part(each.model)} answers, and {server.model.last} is served", places,
                    expected=server.model.last, actual=last_part(each.model),
                )  # fmt: skip


def _doubles(facts: ReportFacts) -> Iterable[Finding]:
    """A command that is written as text, and seen in the picture that directly follows."""
    starts = [each for each in facts.commands if each.kind in ("serve", "chat", "quantize")]
    for one, two in pairwise(starts):
        if one.kind != two.kind or one.read or not two.read or one.place.block in facts.theirs or one.cut or two.cut:
            continue
        if two.place.block - one.place.block > 3 or not _same_section(facts, one, two):
            continue
        places = [one.place, two.place]
        for flag, text, picture in _flags_of(one, two):
            if text == picture:
                yield passed(f"{flag} {text}", places)
            else:
                yield against(
                    "contradiction", f"{flag} is {text} in the text, and {picture} in the picture below", places,
                    expected=text, actual=picture,
                )  # fmt: skip
        if one.model and two.model and one.model.same_size(two.model) is False:
            yield against(
                "contradiction", f"the text names {one.model.last}, and the picture below {two.model.last}", places,
                expected=one.model.last, actual=two.model.last,
            )  # fmt: skip
        elif one.model and two.model and same_folder(one.model.text, two.model.text, read=True):
            yield passed(f"model {one.model.last}", places)


def _flags_of(one: LabCommand, two: LabCommand) -> Iterable[tuple[str, str, str]]:
    for flag, left, right in (
        ("--cache-max-entry-count", one.ratio, two.ratio),
        ("--quant-policy", one.kv_policy, two.kv_policy),
        ("--server-port", one.port, two.port),
        ("--w-bits", one.w_bits, two.w_bits),
    ):
        if left is not None and right is not None:
            yield flag, f"{left:g}", f"{right:g}"


def _same_section(facts: ReportFacts, one: LabCommand, two: LabCommand) -> bool:
    blocks = facts.report.blocks
    between = blocks[one.place.block + 1 : two.place.block]
    return blocks[one.place.block].section == blocks[two.place.block].section and not any(
        each.kind == "heading" for each in between
    )


def _short(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= 60 else f"{plain[:59]}…"
