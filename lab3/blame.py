"""Whose a failure is: the machine's, the server's, the model's or the KV cache's, in a sentence."""

from __future__ import annotations

from lab3.evidence import Evidence, ToolFacts
from lab3.serve_flags import QUANT_POLICY
from lab3.verdicts import Blame, Verdict, Whose

__all__ = ["CALL_MARKERS", "Blame", "blame"]

# How models begin a tool call, by the parsers of LMDeploy 0.18 (lmdeploy/serve/parsers/tool_parser): seen in the text
# of an answer, they mean that nobody parsed it.
CALL_MARKERS = (
    "<|action_start|>",  # internlm, intern-s1
    "<|plugin|>",
    "<tool_call>",  # qwen, glm47, interns2-preview
    "<|python_tag|>",  # llama3
    "<|tool_calls_section_begin|>",  # kimi-k2
    "<｜DSML｜",  # deepseek
)


def blame(verdict: Verdict, section: str, evidence: Evidence) -> Blame | None:
    """Whose failure or trouble the verdict of a check of `section` is; None where nothing went wrong."""
    trouble = evidence.trouble.get(section)
    if trouble is not None and trouble.fault != "not_shown":
        whose: Whose = "subject" if trouble.fault == "subject" else trouble.fault
        return Blame(
            whose=whose, kind=trouble.kind, text=trouble.text, command=trouble.command, log_tail=trouble.log_tail
        )
    if verdict.status != "fail":
        return None
    looked = evidence.diagnosis
    command, log = (looked.command, looked.log_tail) if looked else ("", ())
    whose, kind, text = _cause(section, evidence)
    return Blame(whose=whose, kind=kind, text=text, command=command, log_tail=log)


def _cause(section: str, evidence: Evidence) -> tuple[Whose, str, str]:
    asked_again = evidence.diagnosis.right_by_kv_bits if evidence.diagnosis and section in ("tools", "samples") else {}
    wrong, right = (
        [bits for bits in sorted(map(int, asked_again)) if asked_again[str(bits)] is it] for it in (False, True)
    )
    if wrong and right:  # one question, and nothing but the bits changed: that explains what the wire showed, too
        return (
            "kv_cache",
            f"kv_int{wrong[0]}",
            f"asked by lab3 itself it calls wrong with a KV cache of {wrong[-1]} bits and right with {right[0]}: "
            f"serve it with --quant-policy {QUANT_POLICY[right[0]]}, or choose a model whose keys bear int{wrong[0]}",
        )
    if section == "tools" and (found := next(filter(None, map(_cause_on_the_wire, evidence.tools)), None)):
        return found
    if right:
        return (
            "subject",
            "asked_otherwise",
            "asked by lab3 itself at temperature 0 the same server calls right: it is what was asked here, or chance",
        )
    if wrong:
        told = " and ".join(map(str, wrong))
        return (
            "model",
            "model_ability",
            f"asked by lab3 itself it is wrong with a KV cache of {told} bits, so it is not the cache; "
            "ask the unquantized model to see whether the weights' quantization is at fault",
        )
    if section == "chat" and evidence.chat and evidence.chat.error:
        return "server", "bad_answer", f"the server's answer is no good one: {evidence.chat.error}; read its log"
    if section == "protocol":
        return "server", "protocol", "the server does not keep to the OpenAI protocol here; compare its version"
    return "subject", "as_found", "what was found is not what the lab asks for; the reason above says how"


def _cause_on_the_wire(asked: ToolFacts) -> tuple[Whose, str, str] | None:
    if asked.outcome == "refused":
        return (
            "server",
            "tools_refused",
            f"the server refuses requests with tools ({asked.answer}); start it with --tool-call-parser",
        )
    if asked.outcome == "malformed":
        return "server", "malformed", f"the answer is not the OpenAI API's: {asked.answer}; look at the server's log"
    if asked.prompt_tokens is not None and asked.prompt_tokens == asked.prompt_tokens_without_tools:
        return (
            "model",
            "template_without_tools",
            "the prompt has as many tokens with tools as without, so the chat template does not show them; "
            "put a chat_template.jinja that renders tools into the model folder",
        )
    marker = next((each for each in CALL_MARKERS if each in f"{asked.content}\n{asked.answer}"), None)
    if marker is not None:
        return (
            "server",
            "call_not_parsed",
            f"the model wrote a call ({marker} is in its text) that the server did not parse; "
            "start it with the --tool-call-parser of this model, internlm for InternLM2.5",
        )
    bad = next((call for call in asked.calls if call.outcome in ("not_json", "not_an_object")), None)
    if bad is not None:
        return (
            "model",
            "arguments_not_json",
            f"the arguments of {bad.name} are no JSON object: {bad.arguments_json[:100]}; nothing was run",
        )
    return None
