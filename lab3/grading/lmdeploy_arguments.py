"""What the arguments of an LMDeploy command mean, and what is wrong with each: LMDeploy itself tells only the first."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lab3.grading import lmdeploy_cli, old_lmdeploy
from lab3.grading.lmdeploy_cli import Name, Option
from lab3.grading.problems import Problem, Severity, shown
from lab3.grading.shell_words import Word

MOST_PROBLEMS = 20
_COMMANDS: dict[Name, str] = {
    "api_server": "lmdeploy serve api_server",
    "auto_awq": "lmdeploy lite auto_awq",
    "chat": "lmdeploy chat",
}
_TRUTHS = ("True", "true", "False", "false")


@dataclass(frozen=True, kw_only=True)
class Understood:
    """`values` as LMDeploy reads what was meant: with typing errors put right and old flags left out.

    It takes the command as it is written if no problem is "broken" or "old". `given`: the flags that were meant, and
    their lines. `model_known` is False if no model is named, or by a variable that nothing tells.
    """

    values: dict[str, Any]
    given: dict[str, int]
    model_known: bool
    problems: tuple[Problem, ...]


def understand(name: Name, words: Sequence[Word], *, source: str) -> Understood:
    """`words` follow `api_server`, `auto_awq` or `chat`."""
    walk = _Walk(name=name, words=words, source=source)
    walk.run()
    answer = lmdeploy_cli.ask(name, [word.text for word in words if id(word) not in walk.unknown])
    values = walk.check_values()
    if answer.refused and not any(problem.severity in ("broken", "old") for problem in walk.problems):
        walk.tell("refused", f"LMDeploy says: {shown(answer.refused)}", words[:1])
    return Understood(
        values=values,
        given={flag: walk.line_of(flag) for flag, _ in walk.kept if flag},
        model_known=walk.model_known,
        problems=tuple(walk.problems[:MOST_PROBLEMS]),
    )


@dataclass(kw_only=True)
class _Walk:
    """From word to word. `kept` is what was meant: (flag or "", its words)."""

    name: Name
    words: Sequence[Word]
    source: str
    at: int = 0
    kept: list[tuple[str, tuple[Word, ...]]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    unknown: set[int] = field(default_factory=set)
    model_seen: bool = False
    model_known: bool = True

    def run(self) -> None:
        while self.at < len(self.words):
            word = self.words[self.at]
            self.at += 1
            if word.text.startswith("-") and word.text != "-":
                self._flag(word)
            else:
                self._bare(word)
        if not self.model_seen:
            self.model_known = False
            self.tell("model", "no model is named", self.words)
            self.kept.append(("", (Word(text="MODEL", line=0),)))

    def tell(
        self, kind: str, what: str, words: Sequence[Word], *, severity: Severity = "broken", instead: str = ""
    ) -> None:
        text = shown(" ".join(word.text for word in words))
        line = words[0].line if words else 0
        self.problems.append(
            Problem(kind=kind, severity=severity, what=what, source=self.source, line=line, text=text, instead=instead)
        )

    def check_values(self) -> dict[str, Any]:
        """What LMDeploy makes of what was meant; what it refuses is told and left out."""
        for _ in range(len(self.kept) + 1):
            texts = [[flag] * bool(flag) + [word.text for word in words] for flag, words in self.kept]
            answer = lmdeploy_cli.ask(self.name, [text for each in texts for text in each])
            if not answer.refused:
                return answer.values
            number = next((n for n, (flag, _) in enumerate(self.kept) if flag and flag == answer.flag), None)
            if number is None:
                self.tell("refused", f"LMDeploy says: {shown(answer.refused)}", self.words[:1])
                return {}
            self._value_refused(*self.kept.pop(number))
        return {}

    # --- words that begin with a dash --------------------------------------------------------------------------------

    def _flag(self, word: Word) -> None:
        flag, equals, value = word.text.partition("=")
        option = lmdeploy_cli.find(self.name, flag)
        glued = "" if option else self._glued(flag)
        if option:
            self._known(option, word, value if equals else None)
        elif gone := old_lmdeploy.FLAGS[self.name].get(flag.replace("_", "-")):
            words = [word, *([] if equals else self._following(gone.values))]
            self._old(f"{flag} is of an older LMDeploy (up to {gone.last})", words, gone.todo)
        elif not flag.startswith("--") and (option := lmdeploy_cli.find(self.name, f"-{flag}")):
            self.tell("dashes", "one dash where LMDeploy wants two", [word], instead=f"-{word.text}")
            self._known(option, word, value if equals else None)
        elif glued:
            option = lmdeploy_cli.find(self.name, glued)
            rest = flag[len(glued) :]
            self.tell("space", "a flag and its value without a space between", [word], instead=f"{glued} {rest}")
            self._known(option or Option(flags=(glued,), words=1, expects=""), word, rest)
        else:
            self._unknown_flag(word, flag, value if equals else None)

    def _known(self, option: Option, word: Word, value: str | None) -> None:
        flag = next((each for each in option.flags if each.startswith("--")), option.flags[0])
        if option.words == 0:
            self._switch(flag, word)
            return
        values = (
            [Word(text=value, line=word.line, unknown=word.unknown)]
            if value is not None
            else self._following(option.words)
        )
        if any(each.unknown for each in values):
            self.unknown.update(map(id, [word, *values]))
            self.tell("variable", "a value that only the shell knows", [word, *values], severity="note")
        elif values and (gone := old_lmdeploy.VALUES.get((self.name, flag, values[0].text))):
            self._old(
                f"{flag} {values[0].text} is of an older LMDeploy (up to {gone.last})", [word, *values], gone.todo
            )
        else:
            self.kept.append((flag, tuple(values)))

    def _switch(self, flag: str, word: Word) -> None:
        following = self.words[self.at].text if self.at < len(self.words) else ""
        if following in _TRUTHS:
            said = self.words[self.at]
            self.at += 1
            gone = old_lmdeploy.VALUES.get((self.name, flag, following.capitalize()))
            if gone:
                self._old(f"{flag} {following} is of an older LMDeploy (up to {gone.last})", [word, said], gone.todo)
            else:
                self.tell("value", f"{flag} takes no value", [word, said], instead=flag)
            if following.lower() == "false":
                return
        self.kept.append((flag, ()))

    def _unknown_flag(self, word: Word, flag: str, value: str | None) -> None:
        near = difflib.get_close_matches(flag.replace("_", "-"), lmdeploy_cli.flags(self.name), 1, cutoff=0.75)
        other: Name = "auto_awq" if self.name == "api_server" else "api_server"
        if near:
            self.tell("typo", f"LMDeploy has no {shown(flag)}", [word], instead=near[0])
            self._known(
                lmdeploy_cli.find(self.name, near[0]) or Option(flags=(near[0],), words=1, expects=""), word, value
            )
            return
        option = lmdeploy_cli.find(other, flag)
        eaten = option.words if option else 1
        following = self._following(eaten) if value is None and (self.model_seen or option) else []
        if option:
            self.tell("flag", f"a flag of `{_COMMANDS[other]}`, not of `{_COMMANDS[self.name]}`", [word, *following])
        else:
            self.tell("flag", "a flag that LMDeploy does not have", [word, *following])

    def _glued(self, flag: str) -> str:
        """The flag that `--tp1` begins with."""
        name = flag.rstrip("0123456789.")
        option = lmdeploy_cli.find(self.name, name) if name != flag else None
        return name if option and option.words == 1 and name.replace("_", "-") in option.flags else ""

    # --- other words -------------------------------------------------------------------------------------------------

    def _bare(self, word: Word) -> None:
        name, equals, value = word.text.partition("=")
        flag = "--" + name.replace("_", "-").lstrip("-")
        option = lmdeploy_cli.find(self.name, flag) if flag in lmdeploy_cli.flags(self.name) else None
        next_is_value = self.at < len(self.words) and not self.words[self.at].text.startswith("-")
        if option and (self.model_seen if option.words == 0 else equals or next_is_value):
            self.tell(
                "dashes", "two dashes are missing before a flag", [word, *self._peek(option, equals)], instead=flag
            )
            self._known(option, word, value if equals else None)
        elif not self.model_seen:
            self.model_seen = True
            self.model_known = not word.unknown
            self.kept.append(("", (word,)))
            if word.unknown:
                self.tell("variable", "a model that only the shell knows", [word], severity="note")
        else:
            self.tell("stray", "a word that belongs to no flag", [word])

    def _peek(self, option: Option, equals: str) -> Sequence[Word]:
        return self.words[self.at : self.at + 1] if option.words and not equals else ()

    def _following(self, most: int | None) -> list[Word]:
        """The next words that are values, at most `most`."""
        found: list[Word] = []
        while self.at < len(self.words) and (most is None or len(found) < most):
            word = self.words[self.at]
            if word.text.startswith("-") and not word.text[1:2].isdigit():
                break
            found.append(word)
            self.at += 1
        return found

    def _old(self, what: str, words: Sequence[Word], todo: str) -> None:
        self.tell("old", f"{what}; today: {todo}", words, severity="old")

    def _value_refused(self, flag: str, words: tuple[Word, ...]) -> None:
        option = lmdeploy_cli.find(self.name, flag)
        place = [Word(text=flag, line=words[0].line if words else self.line_of(flag)), *words]
        if not words:
            self.tell("value", f"{flag} wants a value after it", place)
        else:
            self.tell("value", f"{flag} takes {option.expects if option else 'something else'}", place)

    def line_of(self, flag: str) -> int:
        return next((word.line for word in self.words if word.text.startswith(flag)), 0)
