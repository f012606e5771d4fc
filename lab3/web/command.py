"""`lab3 web`: its arguments, and what it does with them. What it says is printed by lab3.cli."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab3.errors import InfraError, UsageError
from lab3.progress import Progress

if TYPE_CHECKING:
    from lab3.serve import ApiServer

PORT = 7860
POLL_S = 0.5
LIVED_S = 60.0  # a server that dies sooner after its start is not started a third time
EPILOG = (
    "Only this machine reaches the page, unless --host or --share says otherwise; then a login is needed. "
    "Ctrl-C ends the page and every server that it started. Exit codes: 2 wrong usage, 3 the machine was in the way."
)


def add_arguments(command: argparse.ArgumentParser, *, model_help: str) -> None:
    """The command's arguments."""
    command.epilog = EPILOG
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("model", nargs="?", metavar="MODEL", help=f"start a server for this: {model_help}")
    what.add_argument("--base-url", metavar="URL", help="a running server, for instance http://127.0.0.1:23333")
    other = command.add_mutually_exclusive_group()
    other.add_argument("--compare", metavar="BASELINE", help="with MODEL: serve this too, with a 16-bit KV cache")
    other.add_argument("--compare-url", metavar="URL", help="the baseline's running server, for the before/after tab")
    command.add_argument("--api-key", default="none", help="for servers that want one")
    command.add_argument("--tools", type=Path, metavar="FILE.py", help="functions of your own for the tools tab")
    command.add_argument("--language", choices=("en", "zh"), default="en", help="the page's first one (%(default)s)")
    command.add_argument("--port", type=int, default=PORT, help="of the page; 0 takes a free one (%(default)s)")
    command.add_argument("--host", default="127.0.0.1", help="address of the page (%(default)s)")
    command.add_argument("--share", action="store_true", help="a public link by gradio.live; needs a login")
    command.add_argument("--login", metavar="USER:PASSWORD", help="ask for it; others on this machine can see it here")
    command.add_argument("--login-file", type=Path, metavar="FILE", help="the same from a file, or LAB3_WEB_LOGIN")
    command.add_argument("--open", action="store_true", help="open the page in the browser")
    command.add_argument(
        "--kv-bits", type=int, default=16, choices=(16, 8, 4), help="of the server started (%(default)s)"
    )
    command.add_argument("--cache-ratio", type=float, default=0.8, help="of the servers started (%(default)s)")


def run(
    arguments: argparse.Namespace,
    progress: Progress,
    *,
    ended: Callable[[], bool],
    say: Callable[[str], None],
    tell: Callable[[Any], None],
) -> None:
    """Serve the page until interrupted, or `ended` says so.

    `tell` hears its address for programs, with --json; else `say` hears text.
    Raises UsageError for arguments that do not go together, before anything is started, and InfraError for a server
    or page that cannot be started.
    """
    from lab3.web.serving import QUIET, reach_local, unproxied
    from lab3.web.settings import Settings, check_reach, login_of
    from lab3.web.toolbox import toolbox
    from lab3.web.wire import Endpoint

    login = login_of(arguments.login, arguments.login_file, os.environ)
    check_reach(arguments.host, share=arguments.share, login=login)
    _check_servers(arguments)
    settings = Settings(
        language=arguments.language,
        host=arguments.host,
        port=arguments.port or None,
        share=arguments.share,
        login=login,
        functions=toolbox(arguments.tools),
    )
    reach_local()
    os.environ.update(QUIET)
    with ExitStack() as running:
        keepers: list[Keeper] = []

        def endpoint(url: str | None, model: str | None, kv_bits: int) -> Any:
            if url is not None:
                return Endpoint(url, arguments.api_key), None
            if model is None:
                return None
            server = running.enter_context(_server(arguments, model, kv_bits, progress))
            keepers.append(Keeper(server, progress))
            return Endpoint(server.base_url, arguments.api_key), server

        main = endpoint(arguments.base_url, arguments.model, arguments.kv_bits)
        baseline = endpoint(arguments.compare_url, arguments.compare, 16)
        progress("the page is starting")
        with unproxied(keep_http=settings.share):
            url, share_url = running.enter_context(_page(settings, main, baseline))
        facts = {
            "url": url,
            "share_url": share_url,
            "base_url": main[0].base_url,
            "model": _model(main),
            "pid": os.getpid(),
            "server_pid": main[1].pid if main[1] else None,
            "compare_url": baseline[0].base_url if baseline else None,
            "login": login is not None,
        }
        if arguments.json:
            tell(facts)
        else:
            say(f"the page is at {share_url or url}" + (f" (and {url})" if share_url else "") + "; Ctrl-C stops it")
        if arguments.base_url is not None and facts["model"] is None:
            progress(f"no server answers at {main[0].base_url} yet; the page says so, and goes on when one does")
        if arguments.open:
            import webbrowser

            webbrowser.open(share_url or url)
        while not ended():
            for keeper in keepers:
                keeper.look()
            time.sleep(POLL_S)


class Keeper:
    """Starts a server of ours again when it has died, so that the page has one; not for ever."""

    def __init__(self, server: ApiServer, progress: Progress, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._server, self._progress, self._clock = server, progress, clock
        self._started_at_s, self._restarts, self._given_up = clock(), 0, False

    def look(self) -> None:
        """Never raises for a server that cannot be started: the page says that it is down."""
        if self._given_up or self._server.running():
            return
        try:
            self._server.check_running()
        except InfraError as error:
            self._progress(f"{error}")
        lived_s = self._clock() - self._started_at_s
        self._restarts = 1 if lived_s >= LIVED_S else self._restarts + 1
        if self._restarts > 1:
            self._given_up = True
            self._progress("the server died again soon after its start; it is not started any more")
            return
        self._progress("starting the server again")
        try:
            self._server.stop(keep_log=True)
            self._server.start()
        except (InfraError, UsageError) as error:
            self._given_up = True
            self._progress(f"{error}")
        self._started_at_s = self._clock()


def _check_servers(arguments: argparse.Namespace) -> None:
    from lab3.openai_client import api_url

    if arguments.compare is not None and arguments.model is None:
        raise UsageError(
            "--compare starts a server, and --base-url names a running one",
            todo="name the running baseline with --compare-url URL",
        )
    for url in (arguments.base_url, arguments.compare_url):
        if url is not None:
            api_url(url)


def _server(arguments: argparse.Namespace, model: str, kv_bits: int, progress: Progress) -> ApiServer:
    from lab3.models import resolve
    from lab3.serve import ApiServer

    return ApiServer(
        resolve(model, progress=progress),
        kv_bits=kv_bits,
        cache_ratio=arguments.cache_ratio,
        engine=arguments.engine,
        progress=progress,
    )


def _page(settings: Any, main: Any, baseline: Any) -> Any:
    from lab3.web.page import Served, build
    from lab3.web.panel import Watch
    from lab3.web.serving import served

    def looked_at(known: Any) -> Served:
        where, server = known
        log = (lambda: server.log_path) if server else (lambda: None)
        return Served(where, Watch(where, log_path=log))

    page = build(settings, looked_at(main), looked_at(baseline) if baseline else None)
    return served(page, settings)


def _model(main: Any) -> str | None:
    """The model that the page begins with; None while its server does not answer."""
    from lab3.errors import Lab3Error
    from lab3.web.wire import models_of

    try:
        return next(iter(models_of(main[0])), None)
    except Lab3Error:
        return None
