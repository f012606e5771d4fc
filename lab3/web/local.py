"""The process behind a server's address, if it runs on this machine: what it serves, and how."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from lab3 import ports
from lab3.openai_client import api_url, is_this_machine
from lab3.serve_flags import QUANT_POLICY

DEFAULT_RATIO = 0.8  # LMDeploy's --cache-max-entry-count


@dataclass(frozen=True)
class LocalServer:
    """An LMDeploy server of this machine, as its command line tells. `folder` is None for a hub id."""

    pid: int
    folder: Path | None
    engine: str  # "turbomind", "pytorch" or "cpu"
    kv_bits: int
    ratio: float
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)


def local_server(base_url: str) -> LocalServer | str:
    """The server's process, or why there is none: "elsewhere" (another machine, or no LMDeploy behind the port),
    "hidden" (another user's) or "down" (nobody listens)."""
    url = api_url(base_url)
    if not is_this_machine(url):
        return "elsewhere"
    parts = urlsplit(url)
    holder = ports.holder(parts.port or (443 if parts.scheme == "https" else 80))
    if holder is None:
        return "down"
    if holder.pid is None:
        return "hidden"
    try:
        process = psutil.Process(holder.pid)
        command, folder = process.cmdline(), Path(process.cwd())
        environ = process.environ()
    except psutil.AccessDenied:
        return "hidden"
    except psutil.Error:
        return "down"
    return of_command(holder.pid, command, folder, environ) or "elsewhere"


def of_command(
    pid: int, command: Sequence[str], folder: Path, environ: Mapping[str, str] = os.environ
) -> LocalServer | None:
    """What `… serve api_server MODEL --flag value …`, run in `folder`, says; None if it is another program's."""
    if "api_server" not in command:
        return None
    words = [part for word in command[command.index("api_server") + 1 :] for part in _split(word)]
    model = next((Path(word) for word in words[:1] if not word.startswith("-")), None)
    told = {name.replace("_", "-"): value for name, value in zip(words, [*words[1:], ""], strict=True)}
    policies = {str(policy): bits for bits, policy in QUANT_POLICY.items()}
    served = folder / model if model is not None else None
    return LocalServer(
        pid=pid,
        folder=served if served is not None and (served / "config.json").is_file() else None,
        engine="cpu" if told.get("--device") == "cpu" else told.get("--backend", "turbomind"),
        kv_bits=policies.get(told.get("--quant-policy", "0"), 16),
        ratio=_ratio(told.get("--cache-max-entry-count", "")),
        environ=environ,
    )


def _split(word: str) -> list[str]:
    return word.split("=", 1) if word.startswith("--") else [word]


def _ratio(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return DEFAULT_RATIO
