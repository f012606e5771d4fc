"""Which lines are commands of a shell: prompts, the commands that the lab needs, and what merely speaks of them."""

from __future__ import annotations

import re
from dataclasses import dataclass

LMDEPLOY_GROUPS = frozenset(
    {"serve", "lite", "chat", "convert", "list", "check_env", "-v", "--version", "-h", "--help"}
)
LMDEPLOY_SUBJECTS = frozenset(
    {"api_server", "auto_awq", "gradio", "api_client", "kv_qparams", "calibrate", "auto_gptq"}
)

_SUBJECTS = {  # words that must follow, where the command's name is a word of prose, too
    "conda": "activate create install deactivate env info list remove init run config clean",
    "mamba": "activate create install deactivate env list run",
    "pip": "install list show uninstall download freeze config cache -V --version",
    "pip3": "install list show uninstall download freeze config -V --version",
    "git": "clone pull push add commit init lfs checkout status log config remote",
    "docker": "run exec ps pull build images logs stop start",
    "apt": "install update upgrade",
    "apt-get": "install update upgrade",
    "tmux": "new attach a ls new-session -",
    "uv": "pip venv run sync add",
    "lab3": "run quantize serve chat funcall web report grade grade-reports vram doctor",
}
_SELDOM_PROSE = frozenset(
    [
        "lmdeploy",
        "python",
        "python3",
        "nvidia-smi",
        "studio-smi",
        "nvitop",
        "gpustat",
        "du",
        "ls",
        "ll",
        "cd",
        "ssh",
        "ln",
        "vim",
        "vi",
        "nano",
        "mkdir",
        "cp",
        "mv",
        "rm",
        "chmod",
        "huggingface-cli",
        "modelscope",
        "openxlab",
        "wget",
        "curl",
        "nohup",
        "sudo",
        "streamlit",
        "bash",
        "sh",
        "swanlab",
        "df",
        "ps",
        "pwd",
    ]
)
_WORDS_OF_PROSE = frozenset(
    [
        "watch",
        "export",
        "touch",
        "source",
        "cat",
        "echo",
        "grep",
        "find",
        "which",
        "head",
        "tail",
        "kill",
        "tree",
        "free",
        "set",
        "unset",
        "env",
    ]
)
KNOWN = _SELDOM_PROSE | _WORDS_OF_PROSE | frozenset(_SUBJECTS)

_ENV = r"(?:\([\w.+\- /]{1,60}\)\s*)"
_PROMPTS = (
    re.compile(
        rf"{_ENV}*\[?[\w.\-]{{1,64}}@[\w.\-]{{1,64}}\]?(?::\s*|\s+)(?P<folder>[^\s\]#$%>'\"]*)\]?\s*[#$%>❯](?=\s|[a-z!./(]|$)\s*"
    ),
    re.compile(rf"{_ENV}*(?P<folder>[~/][^\s#$%>'\"]*)\s*[#$%❯](?=\s|$)\s*"),
    re.compile(rf"{_ENV}*(?:PS\s+)?(?P<folder>[A-Za-z]:\\[^>\n]{{0,200}})>(?=\s|[a-z]|$)\s*"),
    re.compile(rf"{_ENV}*(?:sh|bash|zsh)-[\d.]+[#$%]\s*(?P<folder>)"),
    re.compile(rf"{_ENV}*➜\s+(?P<folder>\S+)\s+(?:git:\(\S+\)\s+)?(?:✗\s+)?"),
    re.compile(rf"{_ENV}*[$%❯›](?=\s+[^\s\d])\s+(?P<folder>)"),
    re.compile(rf"{_ENV}+[#>]\s+(?P<folder>)"),
)
_CJK = re.compile("[\u3000-\u303f\u3400-\u9fff\uff00-\uff5e]")
_CELL_PROMPT = re.compile(r"In\s*\[\s*\d*\s*\]:\s*")
_PATH_OR_FLAG = re.compile(r"[-/._=~$*:\\\d]")
_ASSIGNMENTS = re.compile(r"(?:[A-Za-z_]\w*=(?:\"[^\"]*\"|'[^']*'|[^\s'\"]*)\s+)+(?=\S)")
_LAUNCHERS = frozenset(["sudo", "nohup", "time", "env", "exec", "setsid"])


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A shell's prompt at the beginning of a line; `end`: where the command begins."""

    end: int
    folder: str = ""
    full: bool = True  # it names a user, a folder or an environment, not only `$`


def prompt_of(line: str) -> Prompt | None:
    """The prompt that the line begins with. `>>>` is Python's, and `# ` alone begins a comment."""
    start = len(line) - len(line.lstrip())
    if line.startswith(">>", start) or len(line) > 20_000:
        return None
    if cell := _CELL_PROMPT.match(line, start):
        start = cell.end()
    for pattern in _PROMPTS:
        found = pattern.match(line, start)
        if found is None or found.end() == start:
            continue
        folder = found["folder"]
        if "➜" in found[0] and folder.split("/")[-1] in KNOWN:
            return Prompt(end=found.start("folder"))
        return Prompt(end=found.end(), folder=folder, full=found[0].strip() not in "$%❯›")
    return None


def has_cjk(text: str) -> bool:
    """Whether there is a letter or a sign of Chinese in it."""
    return _CJK.search(text) is not None


def first_words(text: str) -> list[str]:
    """The words from the command's name on: assignments and launchers such as `sudo` and `nohup` are left out."""
    found = _ASSIGNMENTS.match(text.lstrip())
    words = text.lstrip()[found.end() if found else 0 :].split()
    while len(words) > 1 and words[0] in _LAUNCHERS:
        words = words[1:]
    return words


def runs(text: str) -> bool:
    """Whether a line of a shell, without its prompt, runs one of the commands that the lab needs."""
    words = first_words(text)
    if not words or len(words[0]) > 200:
        return False
    name = words[0].rstrip(";&|").rsplit("/", 1)[-1]
    if name not in KNOWN:
        return _misspelt_lmdeploy(words)
    following = words[1] if len(words) > 1 else ""
    if name == "lmdeploy":
        return following in LMDEPLOY_GROUPS
    if name in _SUBJECTS:
        return any(following == each or (each == "-" and following.startswith("-")) for each in _SUBJECTS[name].split())
    return not any(_is_prose(word) for word in _without_comment(words[1:])) and following[:1] not in (":", "=", "：")


def stands_alone(line: str) -> bool:
    """Whether a line of prose is nothing but a command, though no fence or backquote says so."""
    prompt = prompt_of(line)
    text = line[prompt.end :] if prompt else line.strip()
    if prompt and prompt.full:
        return runs(text)
    if not runs(text) or text.rstrip().endswith((":", "：", "。", "，", ",", "!", "！", "?", "？")):
        return False
    words = first_words(text)
    arguments = words[1:]
    if any(_is_prose(word) for word in arguments) or not arguments:
        return False
    if words[0] in _SUBJECTS:
        return len(arguments) < 4 or any(_PATH_OR_FLAG.search(word) for word in arguments)
    if words[0] == "lmdeploy":
        return lmdeploy_words(text) == len(text.split())
    plain = [word for word in arguments if not _PATH_OR_FLAG.search(word.rstrip(".,;"))]
    return len(plain) < len(arguments) and len(plain) <= 2


def lmdeploy_words(text: str) -> int:
    """How many words of `text`, from `lmdeploy` on, are a command with a model or a flag; 0 if it is only named.

    `lmdeploy serve api_server to start the server` names it; `lmdeploy chat /root/m --tp 1 and look` has five words.
    """
    words = text.split()
    at = 1
    while (
        at < len(words)
        and at < 3
        and (words[at] in LMDEPLOY_GROUPS | LMDEPLOY_SUBJECTS or words[at] in ("torch", "turbomind"))
    ):
        at += 1
    given, model, taking = False, False, False
    while at < len(words):
        word = words[at]
        if word == "\\":
            pass
        elif word.startswith(("-", "–", "—")) and len(word) > 1:
            given = taking = True
        elif taking and not has_cjk(word):
            taking = False
        elif not model and (_PATH_OR_FLAG.search(word) or "internlm" in word.lower()) and not has_cjk(word):
            given = model = True
        else:
            break
        at += 1
    return at if given else 0


def _misspelt_lmdeploy(words: list[str]) -> bool:
    known = len(words) > 3 and words[1] in ("serve", "lite") and words[2] in LMDEPLOY_SUBJECTS
    return known and words[0].isascii() and words[0].lower()[:1] == "l" and len(words[0]) < 12


def _without_comment(words: list[str]) -> list[str]:
    return words[: next((at for at, word in enumerate(words) if word.startswith("#")), len(words))]


def _is_prose(word: str) -> bool:
    """A word in Chinese that is neither a path nor quoted."""
    return has_cjk(word) and not any(each in word for each in "/\\.'\"“”‘’=*")
