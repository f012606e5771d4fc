"""Errors that tell the user what happened, why it is likely, and what to type next."""

from __future__ import annotations

from typing import Any, Self


class Lab3Error(Exception):
    """Base of every error lab3 raises on purpose.

    `what` happened, `why` it is likely (may be empty) and `todo`: what to do next (may be empty).
    `kind` names it in a word for programs, where that is known. `exit_code` is what the command line exits with.
    """

    exit_code = 3

    def __init__(self, what: str, *, why: str = "", todo: str = "", kind: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.todo = todo
        self.kind = kind

    def __reduce__(self) -> Any:
        """An error goes from process to process as it is, whatever its subclass takes to be made."""
        return type(self)._made, (self.args, self.__dict__)

    def __str__(self) -> str:
        lines = [self.what]
        if self.why:
            lines.append(f"  why:        {self.why}")
        if self.todo:
            lines.append(f"  what to do: {self.todo}")
        return "\n".join(lines)

    @classmethod
    def _made(cls, arguments: tuple[Any, ...], state: dict[str, Any]) -> Self:
        error = cls.__new__(cls, *arguments)
        error.args = arguments
        error.__dict__.update(state)
        return error


class UsageError(Lab3Error):
    """The user's input is wrong (a bad argument, a missing or malformed file): exit code 2."""

    exit_code = 2


class InfraError(Lab3Error):
    """The machine, not the subject, is in the way (no disk, no network, server cannot start): exit code 3."""

    exit_code = 3
