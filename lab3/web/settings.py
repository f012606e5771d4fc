"""What `lab3 web` was asked for, checked before anything is started."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lab3.errors import UsageError
from lab3.funcall import Tool
from lab3.web.words import Language

LOGIN_VARIABLE = "LAB3_WEB_LOGIN"


@dataclass(frozen=True)
class Login:
    """Who may use the page."""

    user: str
    password: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the page is served. All users of it share this, and nothing else."""

    language: Language = "en"
    host: str = "127.0.0.1"
    port: int | None = None
    share: bool = False
    login: Login | None = None
    functions: Mapping[str, Tool] = field(default_factory=dict)


def login_of(text: str | None, file: Path | None, environ: Mapping[str, str]) -> Login | None:
    """From --login, --login-file or LAB3_WEB_LOGIN, the first that is given. Raises UsageError for no USER:PASSWORD.

    A password on the command line is seen by everybody who can list processes; the other two are not.
    """
    source, given = "--login", text
    if given is None and file is not None:
        source = f"--login-file {file}"
        try:
            given = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"{source} cannot be read", why=str(error), todo="give a file with USER:PASSWORD"
            ) from error
    if given is None and environ.get(LOGIN_VARIABLE):
        source, given = LOGIN_VARIABLE, environ[LOGIN_VARIABLE]
    if given is None:
        return None
    user, colon, password = given.partition(":")
    if not (user.strip() and colon and password):
        raise UsageError(f"{source} is not of the form USER:PASSWORD", todo="give both, such as lab:correct-horse")
    return Login(user.strip(), password)


def check_reach(host: str, *, share: bool, login: Login | None) -> None:
    """Raise UsageError for a page that others could reach and that has no login."""
    if login is not None or (is_loopback(host) and not share):
        return
    what = (
        "--share shows the page to the whole internet" if share else f"--host {host} shows the page to other machines"
    )
    raise UsageError(
        what,
        why="whoever finds it may use the model and its functions",
        todo=f"add --login-file FILE (USER:PASSWORD in it), or --login USER:PASSWORD, or set {LOGIN_VARIABLE}",
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a page that listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
