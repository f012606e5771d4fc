"""What to do about the errors that do not say it themselves, in the words of their templates."""

from __future__ import annotations

_PERSON = "reload the page; it lists what there is"
_BUG = "report it, with the command and its output: lab3 calls this itself"

REMEDIES = {
    "<text> is not more than 0": "give a whole number above 0",
    "The answer's tool_calls are not a list: <calls>": "look at the end of the server's log; `lab3 doctor` names the "
    "LMDeploy that is installed",
    "run_tools needs functions of different names and at least one round.": "rename one of the functions, or pass "
    "`max_rounds=1` or more",
    "<ports> ports are more than a sandbox has: 16": "let the script use one server",
    "libseccomp refuses the filter: <result>": "use a newer libseccomp (2.5 or later), or a newer kernel",
    "The Python for students' scripts does not run: <error>": "run lab3 from a virtual environment whose Python works",
    "the hub failed: <name>: <error>": _BUG,
    "the hub knows no <name>": _BUG,
    "the run ended before this was ready": "nothing, if you stopped it; else read the first error of the run",
    "<base_url> sent no answer of the OpenAI API.": "check host and port: something else may listen there",
    "<url> sent something that is not JSON: <error>": "check host and port: something else may listen there",
    "<model> does not hold the weights of its config: <strangers>": "use the config.json that came with the weights",
    "<name> is too large: <width> × <height> pixels": "hand in a smaller one; the report is graded without it",
    "<name> is no picture that can be read: <error>": "save it again as PNG or JPEG; the report is graded without it",
    "<name> is broken: <error>": "hand it in again; the report is graded without it",
    "no check is named": _PERSON,
    "the decision is none": "decide pass, fail, unknown or accept",
    "no result of <name>": _PERSON,
    "no check <check> of <name>": _PERSON,
    "no report <name>": _PERSON,
    "no such address": "open the address that `lab3 grade-reports --review` prints",
    "the request is too long": "write a shorter note",
    "the server died while it was in use": "the table of servers below says it, by the cause in its log",
    "the server was not ready within <timeout_s> s": "the table of servers below says it, by the cause in its log",
    "the server <ended> after <elapsed_s> s, before it was ready": "the table of servers below says it, by the cause "
    "in its log",
    "the reference was given no way to quantize": _BUG,
    "--base-url and --submission are two subjects: name one": "leave one of them out",
    "--submission <submission>: there is no such folder": "pass the folder that was handed in",
    "--base-url: <what> <todo>": "write it like http://127.0.0.1:23333",
    "--lab3-samples <samples>: take at least one sample": "pass 1 or more; the default is 20",
    "lab3_engine = <engine>: choose auto, turbomind, pytorch or cpu": "correct pytest's ini file",
    "--lab3-capabilities: no <unknown, …>; there are: <offered>": "take names from those that it lists",
}

# Templates without a word of their own, spelled out.
SPELLED = {"<name> <value>": "samples <value> / seqlen <value> / batch size <value>"}

# Errors that repeat another's words, which stand in the tables themselves.
PASSED_ON = {
    ("lab3/serve.py", "<what>"): "what `lab3 vram predict` says of a model that does not fit",
    ("lab3/pytest_plugin.py", "<bad>"): "the trouble of the step that could not be done",
}
