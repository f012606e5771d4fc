"""LMDeploy's API server with a life: `with ApiServer(folder, kv_bits=4) as server:` and nothing of it is left after."""

from __future__ import annotations

import math
import os
import re
import shlex
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Literal, Protocol, Self

from lab3 import bytecode, ports
from lab3.diagnose import Diagnosis, diagnose
from lab3.errors import InfraError, Lab3Error, UsageError
from lab3.models import ModelConfig, loadable, read_config
from lab3.progress import Progress, silent
from lab3.rendering import check_tools_shown
from lab3.serve_flags import Engine, engine_for, launcher_of, server_flags

if TYPE_CHECKING:
    from lab3.serve_process import ServerProcess, StartFailed
    from lab3.vram import Reading

START_TIMEOUT_S = 600.0  # an H100 needs 11 to 96 s; two CPU cores or a network disk may need minutes
GRACE_S = 10.0
ERROR_LINES = 15
VRAM_TIMEOUT_S = 5.0


class Server(Protocol):
    """What a running server is to those who talk to it, whoever started it."""

    @property
    def base_url(self) -> str: ...
    @property
    def model_name(self) -> str: ...
    def running(self) -> bool: ...
    def log_tail(self, n: int = 20) -> list[str]: ...


class ServerError(InfraError):
    """A server that did not start or died. `diagnosis` is the likely cause; its `fault` may be the model folder's."""

    def __init__(
        self, what: str, *, diagnosis: Diagnosis, command: str, log_path: Path | None, log_lines: Sequence[str]
    ) -> None:
        super().__init__(what, why=diagnosis.why, todo=diagnosis.todo)
        self.diagnosis = diagnosis
        self.command = command
        self.log_path = log_path
        self.log_lines = list(log_lines)

    def __str__(self) -> str:
        lines = [super().__str__()]
        if self.diagnosis.line:
            lines.append(f"  recognised by: {self.diagnosis.line}")
        lines.append(f"  to reproduce: {self.command}")
        if self.log_path is not None:
            lines.append(f"  log: {self.log_path}")
        return "\n".join([*lines, *(f"    | {line}" for line in self.log_lines)])


class ApiServer:
    """`lmdeploy serve api_server MODEL`, started when the block is entered and gone when it is left.

    `kv_bits` 16, 8 or 4 bits for each number in the KV cache; `cache_ratio` the share of the memory *free after the
    weights* that the cache takes (LMDeploy's --cache-max-entry-count); `engine` "auto" lets the hardware choose; `port`
    None takes a free one; `model_name` defaults to the folder's name. `log_path` None writes a temporary log that is
    kept only if something went wrong. `launcher` replaces `python -m lmdeploy`, say by the lmdeploy of another
    environment. `extra_args` are appended, so they override lab3's flags.

    Raises UsageError for arguments LMDeploy would refuse and InfraError for a taken port, before anything is loaded.
    `start()` raises UsageError for a model that the card cannot hold and, with a tool parser, for one whose chat
    template does not show tools (both are seen while the server begins to load, and end it). It raises ServerError,
    with the cause and the log's last lines, when the process ends or `timeout_s` pass.
    Flags and rules: LMDeploy 0.18, lmdeploy/cli/serve.py and lmdeploy/messages.py.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        kv_bits: int = 16,
        cache_ratio: float = 0.8,
        engine: Engine | Literal["auto"] = "auto",
        port: int | None = None,
        host: str = "127.0.0.1",
        dtype: str = "auto",
        session_len: int | None = None,
        max_batch_size: int | None = None,
        tool_call_parser: str | None = "internlm",
        model_name: str | None = None,
        log_path: Path | None = None,
        extra_args: Sequence[str] = (),
        timeout_s: float = START_TIMEOUT_S,
        grace_s: float = GRACE_S,
        env: Mapping[str, str] | None = None,
        launcher: Sequence[str] | None = None,
        progress: Progress = silent,
    ) -> None:
        given = Path(model).expanduser().resolve()
        config = _config_of(given)
        self.model = loadable(given, progress=progress)
        self._shows_tools = tool_call_parser is not None
        self.model_name = model_name or self.model.name
        self._env = dict(env or {})
        self.engine: Engine = engine_for(config, engine, {**os.environ, **self._env}, kv_bits=kv_bits)
        self.host = host
        self._flags = server_flags(
            config,
            engine=self.engine,
            kv_bits=kv_bits,
            cache_ratio=cache_ratio,
            dtype=dtype,
            session_len=session_len,
            max_batch_size=max_batch_size,
            tool_call_parser=tool_call_parser,
        )
        self._launcher = list(launcher or launcher_of(self.engine))
        self._kv_bits, self._cache_ratio = kv_bits, cache_ratio
        self._extra_args = list(extra_args)
        self._reservation = ports.reserve(host, port)
        self.port: int = self._reservation.getsockname()[1]
        self.log_path: Path | None = log_path
        self._keep_log = log_path is not None
        self._timeout_s, self._grace_s, self._progress = timeout_s, grace_s, progress
        self._process: ServerProcess | None = None
        self._log: IO[str] | None = None
        self._said_at_s = -math.inf
        self._unchecked = False
        self._vram_before: Reading | None = None
        self.startup_seconds: float | None = None

    def start(self) -> Self:
        """Start and wait until ready. Raises ServerError or InfraError, and leaves nothing running then."""
        from lab3.serve_process import ServerProcess, StartFailed

        if self._process is not None:
            return self
        self._vram_before = self._read_vram()
        if self._reservation.fileno() < 0:  # stopped before, and started again
            self._reservation = ports.reserve(self.host, self.port)
        self._log = self._open_log()
        self._said_at_s = -math.inf
        self._process = ServerProcess(
            self.command,
            host=self._client_host,
            port=self.port,
            log=self._log,
            env={"PYTHONUNBUFFERED": "1", **bytecode.kept(), **self._env},
            timeout_s=self._timeout_s,
            grace_s=self._grace_s,
            watch=self._watch,
        )
        self._unchecked = True
        started_at = time.monotonic()
        try:
            self._process.start()
        except StartFailed as failure:
            error = self._start_error(failure, elapsed_s=time.monotonic() - started_at)
            self.stop(keep_log=True)
            raise error from None
        except Lab3Error:  # the model is at fault, not the server
            self.stop()
            raise
        except BaseException:
            self.stop(keep_log=True)
            raise
        self.startup_seconds = time.monotonic() - started_at
        if self.engine == "turbomind" and "Fallback to pytorch engine" in self.log_text():
            self.engine = "pytorch"  # LMDeploy changes its mind about an architecture that TurboMind lacks
        self._progress(f"the server is ready after {self.startup_seconds:.0f} s at {self.base_url}")
        return self

    def stop(self, *, keep_log: bool = False) -> None:
        """SIGTERM, and SIGKILL after `grace_s`; returns when its processes are gone, its port and GPU memory free."""
        process, self._process = self._process, None
        try:
            if process is not None:
                process.stop()
                self._wait_vram()
        finally:
            self._reservation.close()
            if self._log is not None:
                self._log.close()
                self._log = None
            if self.log_path is not None and not (self._keep_log or keep_log):
                self.log_path.unlink(missing_ok=True)
                self.log_path = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failed = kind is not None and not issubclass(kind, KeyboardInterrupt)  # Ctrl-C is how a server is ended
        self.stop(keep_log=failed)

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes as its `base_url`, ending in /v1."""
        return f"http://{ports.bracketed(self._client_host)}:{self.port}/v1"

    @property
    def command(self) -> list[str]:
        """The server's argv."""
        return [
            *self._launcher,
            *["serve", "api_server", str(self.model)],
            *["--server-name", self.host, "--server-port", str(self.port), "--model-name", self.model_name],
            *self._flags,
            *self._extra_args,
        ]

    @property
    def shell_command(self) -> str:
        """A line for a shell that starts the same server, with the environment variables that matter to it."""
        names = ("LAB3_CPU_MEMORY",) if self.engine == "cpu" else ("CUDA_VISIBLE_DEVICES", "TM_LOG_LEVEL")
        env = {name: os.environ[name] for name in names if name in os.environ} | self._env
        return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in env.items()), shlex.join(self.command)])

    @property
    def pid(self) -> int | None:
        """The process id of api_server while it runs, else None."""
        return None if self._process is None else self._process.server_pid()

    @property
    def pids(self) -> list[int]:
        """All processes of the server, its engine's and lab3's guard among them."""
        return [] if self._process is None else self._process.pids()

    @property
    def foreign_mib(self) -> int:
        """What other processes held of the GPU when it was started; 0 on the CPU."""
        return 0 if self._vram_before is None else self._vram_before.used_mib

    def running(self) -> bool:
        """Whether the process lives; it may still be loading, or hang."""
        return self._process is not None and bool(self._process.running())

    def check_running(self) -> None:
        """Raise ServerError, with the likely cause, if the server died since it was started."""
        if self._process is None or self.running():
            return
        returncode = self._process.process.returncode if self._process.process else None
        raise self._error("the server died while it was in use", diagnose(self.log_text(), returncode=returncode))

    def log_text(self) -> str:
        """The log so far (at most its last 4 MB), without colours; "" when there is none."""
        if self.log_path is None or not self.log_path.is_file():
            return ""
        with self.log_path.open("rb") as log:
            log.seek(max(0, self.log_path.stat().st_size - 4 * 2**20))
            return _plain(log.read().decode("utf-8", "replace"))

    def log_tail(self, n: int = 20) -> list[str]:
        """The log's last `n` lines that say something."""
        return [line for line in self.log_text().splitlines() if line.strip()][-n:]

    @property
    def _client_host(self) -> str:
        return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self.host, self.host)

    def _open_log(self) -> IO[str]:
        if self.log_path is None:
            descriptor, name = tempfile.mkstemp(prefix="lab3-server-", suffix=".log")
            self.log_path = Path(name)
            return os.fdopen(descriptor, "w")
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        return self.log_path.open("w")

    def _read_vram(self) -> Reading | None:
        if self.engine == "cpu":
            return None
        from lab3 import vram

        with suppress(InfraError, UsageError):  # no driver: LMDeploy will say so itself
            return vram.read(device="cuda", environ={**os.environ, **self._env})
        return None

    def _check_model(self) -> None:
        """Raise UsageError or InfraError for what is sure to fail, now rather than after minutes of loading."""
        if self._shows_tools:
            check_tools_shown(self.model)
        card, quantization = self._vram_before, read_config(self.model).quantization or {}
        if card is None or "--tp" in self._extra_args or quantization.get("quant_method", "awq") != "awq":
            return  # several cards, or sizes that lab3 does not know: LMDeploy will tell
        check_fits(
            self.model,
            card=card,
            ratio=self._cache_ratio,
            kv_bits=self._kv_bits,
            engine=self.engine,
        )

    def _wait_vram(self) -> None:
        """The driver takes a moment to give memory back, and the next measurement must not see it."""
        if self._vram_before is None:
            return
        from lab3 import vram

        with suppress(InfraError):  # our processes are gone: what is still held is somebody else's
            vram.wait_freed(self._vram_before, timeout_s=VRAM_TIMEOUT_S, environ={**os.environ, **self._env})

    def _watch(self, elapsed_s: float) -> None:
        if self._unchecked:  # while the server loads: transformers, which renders templates, takes 0.7 s to be imported
            self._unchecked = False
            self._check_model()
        if elapsed_s - self._said_at_s >= 1.0:
            self._said_at_s = elapsed_s
            last = (self.log_tail(1) or ["no output yet"])[0]
            self._progress(f"the server is starting ({self.engine}), {elapsed_s:.0f} s: {last[:120]}")

    def _start_error(self, failure: StartFailed, *, elapsed_s: float) -> InfraError:
        if failure.stranger:
            return ports.taken(self._client_host, self.port)
        diagnosis = diagnose(self.log_text(), returncode=failure.returncode)
        if failure.timed_out:
            return self._error(f"the server was not ready within {self._timeout_s:g} s", diagnosis)
        ended = _ending(failure.returncode or 0)
        return self._error(f"the server {ended} after {elapsed_s:.1f} s, before it was ready", diagnosis)

    def _error(self, what: str, diagnosis: Diagnosis) -> ServerError:
        return ServerError(
            what,
            diagnosis=diagnosis,
            command=self.shell_command,
            log_path=self.log_path,
            log_lines=self.log_tail(ERROR_LINES),
        )


class AttachedServer:
    """A server that somebody else started: the same face as ApiServer's, without its life or its log."""

    engine = "unknown"
    pid: int | None = None
    log_path: Path | None = None
    startup_seconds: float | None = None

    def __init__(self, base_url: str, *, model_name: str, api_key: str) -> None:
        self.base_url = base_url
        self.model_name = model_name
        self._api_key = api_key

    def running(self) -> bool:
        """Whether it still answers."""
        try:
            attach(self.base_url, api_key=self._api_key, timeout_s=5.0)
        except InfraError:
            return False
        return True

    def log_tail(self, n: int = 20) -> list[str]:
        return []


def check_fits(model: Path, *, card: Reading, ratio: float, kv_bits: int, engine: str) -> None:
    """Whether a server of `model` fits on `card`, by prediction.

    Raises UsageError if it never will, and InfraError if it would but for what others hold of the card.
    """
    from lab3.vram_predict import predict

    asked = {"total_mib": card.total_mib, "ratio": ratio, "kv_bits": kv_bits, "engine": engine, "model": model}
    predict(**asked)  # type: ignore[arg-type]
    try:
        predict(**asked, foreign_mib=min(card.used_mib, card.total_mib - 1))  # type: ignore[arg-type]
    except UsageError as busy:
        raise InfraError(busy.what, why=busy.why, todo=busy.todo, kind="gpu_memory") from busy


def attach(base_url: str, *, api_key: str = "none", timeout_s: float = 10.0) -> AttachedServer:
    """The server at `base_url` (with or without /v1). Raises UsageError for no URL, InfraError if no server answers."""
    from lab3.openai_client import api_url, first_model, open_client

    with open_client(base_url, api_key=api_key, timeout_s=timeout_s) as client:
        return AttachedServer(api_url(base_url), model_name=first_model(client), api_key=api_key)


def _config_of(folder: Path) -> ModelConfig:
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"{folder} is not a model folder",
            why="it has no config.json" if folder.is_dir() else "there is no such folder",
            todo="pass the folder that holds config.json, the tokenizer and the weights",
        )
    return read_config(folder)


def _ending(returncode: int) -> str:
    return f"was ended by signal {-returncode}" if returncode < 0 else f"exited with code {returncode}"


def _plain(text: str) -> str:
    """Without terminal colours, and with a progress bar's repaints on lines of their own."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n")
