"""How the processes of a run reach its hub: through a Unix socket that only those with its key can use."""

from __future__ import annotations

import os
import pickle
import shutil
import socket
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener, answer_challenge, deliver_challenge
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from lab3.errors import InfraError, Lab3Error
from lab3.hub import Closed, Hub, RunningServer, ServerSpec
from lab3.vram import Reading

T = TypeVar("T")
_LOOK_UP_S = 0.5  # who waits for an answer looks for signals so often: one may come just before the wait begins
_TEMP = "/tmp"  # a socket's path has at most 103 bytes on macOS, and $TMPDIR may be long


@dataclass(frozen=True)
class Address:
    """Where a hub listens, and the key that it asks for."""

    path: str
    key: bytes

    def to_dict(self) -> dict[str, str]:
        """For another process's settings; `from_dict` reads it."""
        return {"path": self.path, "key": self.key.hex()}

    @classmethod
    def from_dict(cls, plain: dict[str, str]) -> Self:
        """The address again."""
        return cls(plain["path"], bytes.fromhex(plain["key"]))


class _Ask(Protocol):
    def __call__(self, name: str, /, *arguments: Any) -> Any: ...


class Member:
    """One process's part in a run. `ask` carries a request to the hub."""

    def __init__(self, ask: _Ask) -> None:
        self._ask = ask

    def once(self, name: str, make: Callable[[], T]) -> T:
        """The value of that name, made by the first member that wants it; the others wait.

        Raises the Lab3Error that making it raised, whoever made it. A value that goes to other processes is pickled.
        """
        what, value = self._ask("claim", name)
        if what == "made":
            return value  # type: ignore[no-any-return]
        try:
            value = make()
            self._ask("settle", name, value, None)
        except Lab3Error as error:
            self._ask("settle", name, None, error)
            raise
        except BaseException:
            self._ask("give_up", name)
            raise
        return value

    @contextmanager
    def server(self, spec: ServerSpec, *, keep: bool = True) -> Iterator[RunningServer]:
        """The running server for the block, started if need be; with `keep` it stays until this member leaves.

        Raises what `lab3.serve.ApiServer` raises, and ServerError if it died since it was started.
        """
        running: RunningServer = self._ask("attach", spec, keep)
        try:
            yield running
        finally:
            with suppress(Closed):
                self._ask("detach", spec)

    @contextmanager
    def gpu(self) -> Iterator[None]:
        """A GPU that nobody else uses is what this process and its children see in the block, if there are any.

        Raises InfraError if none becomes free.
        """
        env: dict[str, str] = self._ask("lend")
        before = {name: os.environ.get(name) for name in env}
        os.environ.update(env)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
            with suppress(Closed):
                self._ask("give_back")

    def progress(self, message: str, *, done: float | None = None, total: float | None = None) -> None:
        """Say it where the run's user sees it."""
        with suppress(Closed):
            self._ask("say", message, done, total)

    def peak(self, spec: ServerSpec) -> Reading:
        """The most memory that a server which this member uses has held since it was ready."""
        return self._ask("peak", spec)  # type: ignore[no-any-return]


@contextmanager
def member_of(hub: Hub) -> Iterator[Member]:
    """Take part in a hub of this process."""
    number = hub.join()
    try:
        yield Member(lambda name, *arguments: _do(hub, number, name, arguments, gone=lambda: False))
    finally:
        hub.leave(number)


@contextmanager
def remote_member(address: Address) -> Iterator[Member]:
    """Take part in another process's hub. Raises Closed if it is not there any more."""
    lock = threading.Lock()
    try:
        connection = Client(address.path, family="AF_UNIX", authkey=address.key)
    except (OSError, EOFError) as error:
        raise Closed() from error

    def ask(name: str, /, *arguments: Any) -> Any:
        request = pickle.dumps((name, arguments))
        with lock:
            try:
                connection.send_bytes(request)
                while not connection.poll(_LOOK_UP_S):
                    pass
                reply = connection.recv_bytes()
            except (OSError, EOFError) as error:
                raise Closed() from error
            except BaseException:  # a test's time-out: the next request must not get this one's answer
                connection.close()
                raise
        good, answer = pickle.loads(reply)
        if not good:
            raise answer
        return answer

    with connection:
        yield Member(ask)


class HubServer:
    """A hub with a door: other processes reach it at `address` while the block runs."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._folder: Path | None = None
        path = f"\0lab3-{uuid.uuid4().hex}"  # a name of Linux's that is no file: it goes with the process
        if sys.platform != "linux":
            self._folder = Path(tempfile.mkdtemp(prefix="lab3-", dir=_TEMP))  # nobody else may enter
            path = str(self._folder / "hub")
        self.address = Address(path, os.urandom(32))
        self._listener = Listener(self.address.path, family="AF_UNIX", backlog=64)
        self._closed = False
        self._thread = threading.Thread(target=self._accept, name="lab3-hub", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Nobody else can enter; those inside are served on. The socket is gone."""
        if self._closed:
            return
        self._closed = True
        with suppress(OSError), socket.socket(socket.AF_UNIX) as waking:  # `accept` does not notice a closed socket
            waking.connect(self.address.path)
        self._thread.join(5)
        self._listener.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection = self._listener.accept()
            except OSError:  # one that went at once
                continue
            # Its key is asked for in its own thread: a stranger that says nothing must not keep others waiting.
            threading.Thread(target=self._admit, args=(connection,), name="lab3-member", daemon=True).start()

    def _admit(self, connection: Connection[Any, Any]) -> None:
        try:
            deliver_challenge(connection, self.address.key)
            answer_challenge(connection, self.address.key)
        except (OSError, EOFError, AuthenticationError):
            connection.close()
            return
        if self._closed:
            connection.close()
            return
        self._serve(connection)

    def _serve(self, connection: Connection[Any, Any]) -> None:
        number = self._hub.join()

        def gone() -> bool:  # a member that waits for its answer sends nothing: what can be read is the end
            try:
                return connection.poll(0)
            except (OSError, EOFError):
                return True

        try:
            while True:
                request = connection.recv_bytes()
                try:
                    name, arguments = pickle.loads(request)
                    answer = (True, _do(self._hub, number, name, arguments, gone=gone))
                except Lab3Error as error:
                    answer = (False, error)
                except Exception as error:  # a mistake of ours must not leave the member waiting
                    answer = (False, InfraError(f"the hub failed: {type(error).__name__}: {error}"))
                connection.send(answer)
        except (OSError, EOFError):
            pass
        finally:
            connection.close()
            self._hub.leave(number)


def _do(hub: Hub, number: int, name: str, arguments: tuple[Any, ...], *, gone: Callable[[], bool]) -> Any:
    if name == "claim":
        return hub.claim(number, *arguments, gone=gone)
    if name == "settle":
        value_name, value, error = arguments
        return hub.settle(number, value_name, value, error)
    if name == "give_up":
        return hub.give_up(number, *arguments)
    if name == "attach":
        spec, keep = arguments
        return hub.attach(number, spec, keep=keep, gone=gone)
    if name == "lend":
        return hub.lend(number, gone=gone)
    if name == "give_back":
        return hub.give_back(number)
    if name == "detach":
        return hub.detach(number, *arguments)
    if name == "say":
        message, done, total = arguments
        return hub.progress(message, done=done, total=total)
    if name == "peak":
        return hub.peak(*arguments)
    raise InfraError(f"the hub knows no {name!r}")
