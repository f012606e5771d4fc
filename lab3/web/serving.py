"""The page, served: bound where it was asked, with a login where it was asked, and sending nothing anywhere else."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab3 import ports
from lab3.errors import InfraError
from lab3.web.settings import Settings, is_loopback
from lab3.web.words import word

if TYPE_CHECKING:
    from gradio import Blocks

HERE = ("127.0.0.1", "localhost", "::1")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
# What Gradio and what it imports read from the environment, so that they send nothing anywhere.
QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
# Scripts stand in the page itself, as Gradio makes it. Nothing is fetched from or sent to another place: a picture in
# an answer would tell a stranger who reads it.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' data: blob:; connect-src 'self'; "
    "worker-src 'self' blob:; frame-src 'none'; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'self'"
)


@contextlib.contextmanager
def served(page: Blocks, settings: Settings) -> Iterator[tuple[str, str | None]]:
    """The page's address, and with `share` the public one, while the block runs.

    Raises InfraError for a port that is taken and for a share link that cannot be had.
    """
    import gradio as gr
    from starlette.middleware import Middleware

    folder = Path(__file__).parent
    script = (folder / "page.js").read_text(encoding="utf-8").replace("LAB3_LANGUAGE", settings.language)
    style = (folder / "page.css").read_text(encoding="utf-8")
    login = settings.login
    with ports.reserve(settings.host, settings.port) as reserved:
        port = reserved.getsockname()[1]
        with contextlib.redirect_stdout(sys.stderr):  # Gradio prints
            try:
                page.launch(
                    server_name=f"[{settings.host}]" if ":" in settings.host else settings.host,
                    server_port=port,
                    share=settings.share,
                    auth=(login.user, login.password) if login else None,
                    auth_message=word("login", settings.language) if login else None,
                    prevent_thread_lock=True,
                    quiet=True,
                    inline=False,
                    ssr_mode=False,
                    mcp_server=False,
                    pwa=False,
                    run_history=False,
                    enable_monitoring=False,
                    num_workers=0,
                    max_file_size="1mb",  # nothing is to be uploaded
                    footer_links=[],
                    theme=gr.themes.Default(
                        font=["system-ui", "-apple-system", "Segoe UI", "PingFang SC", "Microsoft YaHei", "sans-serif"],
                        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"],
                    ),
                    head=f"<style>{style}</style><script>{script}</script>",  # Gradio rewrites the selectors of `css`
                    app_kwargs={"middleware": [Middleware(Policy)], "docs_url": None, "redoc_url": None},
                )
            except OSError as error:
                raise ports.taken(settings.host, port) from error
        try:
            if settings.share and not page.share_url:
                raise InfraError(
                    "Gradio could not make a share link",
                    why="it takes a connection to gradio.live and a program that Gradio downloads for it",
                    todo="leave out --share, and forward the port: `ssh -L 7860:127.0.0.1:7860 HOST`",
                )
            yield f"http://{_reachable(settings.host)}:{port}", page.share_url
        finally:
            with contextlib.redirect_stdout(sys.stderr):
                page.server.force_exit = True  # else it waits for the streams of open tabs; it does not like it
                logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
                page.close(verbose=False)


class Policy:
    """Adds the page's policy to each answer."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def told(message: Any) -> None:
            if message["type"] == "http.response.start":
                extra = {"content-security-policy": POLICY, "referrer-policy": "no-referrer"}
                headers = [(name.encode(), value.encode()) for name, value in extra.items()]
                message = {**message, "headers": [*message.get("headers", []), *headers]}
            await send(message)

        await self._app(scope, receive, told if scope["type"] == "http" else send)


def reach_local(environ: Any = os.environ) -> None:
    """Add this machine to `no_proxy`, so that a proxy of the environment is never asked for what runs here."""
    known = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    listed = [name.strip() for name in known.split(",") if name.strip()]
    whole = ",".join([*listed, *(name for name in HERE if name not in listed)])
    environ["no_proxy"] = environ["NO_PROXY"] = whole


@contextlib.contextmanager
def unproxied(*, keep_http: bool) -> Iterator[None]:
    """No proxy while Gradio is imported and asks its own page; with `keep_http` only none that it cannot read.

    Its httpx looks at all of them whatever no_proxy says, and fails for a SOCKS proxy without the package socksio.
    """
    kept = {name: value for name, value in os.environ.items() if name.lower() in _PROXIES}
    dropped = {name: value for name, value in kept.items() if not (keep_http and _readable(value))}
    for name in dropped:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(dropped)


def _readable(proxy: str) -> bool:
    return not proxy.lower().startswith("socks") or importlib.util.find_spec("socksio") is not None


def _reachable(host: str) -> str:
    return ports.bracketed(host if is_loopback(host) or host not in ("0.0.0.0", "::", "") else "127.0.0.1")
