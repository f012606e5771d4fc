"""What the processes of a run share: real processes, a real socket, and stand-ins for LMDeploy and for NVML."""

from __future__ import annotations

import os
import pickle
import queue
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import AuthenticationError
from pathlib import Path
from typing import Any

import psutil
import pytest

from lab3 import gpu_lease
from lab3.diagnose import Diagnosis
from lab3.errors import InfraError, UsageError
from lab3.hub import Closed, Hub, ServerSpec
from lab3.hub_wire import Address, HubServer, member_of, remote_member
from lab3.serve import ApiServer, ServerError
from tests.unit.test_gpu_lease import Machine
from tests.unit.test_serve import FAKE, ROOT, alive, is_open, wait_gone, write_model

pytestmark = [pytest.mark.timeout(60), pytest.mark.xdist_group("waiting")]
WAIT_S = 20.0
NO_MODEL = UsageError("there is no such model", why="its folder is empty", todo="name another")
OUT_OF_MEMORY = Diagnosis("gpu_memory", "machine", "the GPU ran out of memory", "take less", line="out of memory")
DEAD = ServerError("it died", diagnosis=OUT_OF_MEMORY, command="lmdeploy x", log_path=Path("x.log"), log_lines=["a"])

# A member in a process of its own: it says what it gets, and goes on at each line that it reads.
MEMBER = """
import os, pickle, sys
from lab3.hub_wire import remote_member
class Foreign: pass
def say(what): print(pickle.dumps(what).hex(), flush=True)
def fail(error): raise error
def make():
    say("making")
    return eval(input())
def once(member, name):
    say(member.once(name, make))
def lend(member, _):
    with member.gpu():
        say({"CUDA_VISIBLE_DEVICES": os.environ["CUDA_VISIBLE_DEVICES"]})
        input()
def use(member, spec):
    with member.server(spec) as server:
        say(server.pid)
        input()
    say("left")
address, job, what = pickle.loads(bytes.fromhex(sys.argv[1]))
with remote_member(address) as member:
    while True:
        try:
            globals()[job](member, what)
        except Exception as error:
            say(error)
        input()
"""
HUB = """
import pickle, sys
from pathlib import Path
from lab3.hub_wire import member_of
from tests.unit.test_hub import Run
run = Run(Path(sys.argv[1]))
with member_of(run) as member, member.server(run.spec("ready")):
    print(pickle.dumps((run.door.address, run.servers[0].pids)).hex(), flush=True)
    input()
"""


class Process:
    """A Python process that says objects, each in a line."""

    def __init__(self, code: str, word: str) -> None:
        pipe, command = subprocess.PIPE, [sys.executable, "-c", code, word]
        self.popen = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)

    def hear(self) -> Any:
        return pickle.loads(bytes.fromhex(self.popen.stdout.readline()))

    def go(self, line: str = "") -> None:
        self.popen.stdin.write(f"{line}\n")
        self.popen.stdin.flush()

    def kill(self) -> None:
        self.popen.kill()
        self.popen.communicate()


class Run(Hub):
    """A hub with its door; the servers are stand-ins, which behave as the folder of their model is called."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder=folder / "logs", make=self.build, progress=self.say)
        self.models, self.servers, self.processes = folder, [], []
        self.said, self.asked = queue.Queue(), queue.Queue()
        self.before = lambda message: None  # called before a server is built, and before a message of its is said
        self.door = HubServer(self)

    def spec(self, behaviour: str, *, engine: str = "cpu", **wishes: Any) -> ServerSpec:
        if not (model := self.models / behaviour).exists():
            write_model(model)
        return ServerSpec(model=str(model), engine=engine, **wishes)

    def process(self, job: str, what: str | ServerSpec) -> Process:
        self.processes.append(Process(MEMBER, pickle.dumps((self.door.address, job, what)).hex()))
        return self.processes[-1]

    def await_asked(self, count: int) -> None:
        """Until so many more requests for a value or a server have come."""
        for _ in range(count):
            self.asked.get(timeout=WAIT_S)

    def await_waiting(self) -> None:
        """Until a member waits for a server that another one starts."""
        deadline = time.monotonic() + WAIT_S
        with self._changed:
            while not any(slot.waiting for slot in self._slots.values()):
                assert time.monotonic() < deadline
                self._changed.wait(0.02)

    def await_said(self, words: str) -> None:
        while words not in self.said.get(timeout=WAIT_S):
            pass

    def build(self, spec: ServerSpec, *, progress: Any, **options: Any) -> ApiServer:
        def say(message: str, **more: Any) -> None:
            self.before(message)
            progress(message, **more)

        self.before("building")
        launcher = [sys.executable, "-S", str(FAKE), Path(spec.model).name]
        server = ApiServer(**asdict(spec), launcher=launcher, timeout_s=WAIT_S, grace_s=5, progress=say, **options)
        self.servers.append(server)
        return server

    def say(self, message: str, *, done: float | None = None, total: float | None = None) -> None:
        self.said.put(message if done is None else f"{message} {done}/{total}")

    def claim(self, *args: Any, **options: Any) -> Any:
        self.asked.put("a value")
        return super().claim(*args, **options)

    def attach(self, *args: Any, **options: Any) -> Any:
        self.asked.put("a server")
        return super().attach(*args, **options)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of which nothing is left after the test, whatever the test did."""
    monkeypatch.setenv("LAB3_CPU_MEMORY", "4GiB")
    run = Run(tmp_path)
    yield run
    run.door.close()
    run.close()
    for process in run.processes:
        process.kill()
    assert [server.port for server in run.servers if server.running() or is_open(server.port)] == []
    with pytest.raises(Closed), remote_member(run.door.address):
        pass


@pytest.fixture
def cards(tmp_path, monkeypatch):
    """Gives the machine GPUs of these UUIDs."""

    def have(*uuids: str) -> Machine:
        monkeypatch.setitem(sys.modules, "pynvml", machine := Machine(*uuids))
        monkeypatch.setattr(gpu_lease, "_TEMP", tmp_path)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        return machine

    return have


def the_one_who_speaks(*processes: Process) -> Process:
    speaking, _, _ = select.select([process.popen.stdout for process in processes], [], [], WAIT_S)
    (found,) = (process for process in processes if process.popen.stdout in speaking)
    return found


def told(error: BaseException) -> tuple[Any, ...]:
    return type(error), error.args, vars(error)


def kill_by_request(server: Any, pids: list[int]) -> None:
    urllib.request.urlopen(f"{server.base_url}/die")
    assert wait_gone(pids, 5) == []


# --- values -------------------------------------------------------------------------------------------------------


def test_a_value_is_made_once_though_many_processes_ask_at_the_same_time(run):
    members = [run.process("once", "folder") for _ in range(4)]
    run.await_asked(4)
    maker = the_one_who_speaks(*members)
    assert maker.hear() == "making"
    maker.go("'/tmp/folder'")

    assert [member.hear() for member in members] == ["/tmp/folder"] * 4
    assert run.values() == {"folder": "/tmp/folder"}


@pytest.mark.parametrize(("made", "said"), [("SIGKILL", ""), ("1 / 0", "division"), ("lambda: 0", "pickle")])
def test_what_the_first_did_not_bring_about_is_made_by_another(run, made, said):
    first = run.process("once", "folder")
    assert first.hear() == "making"
    others = [run.process("once", "folder") for _ in range(2)]
    run.await_asked(3)
    if made == "SIGKILL":
        first.kill()
    else:
        first.go(made)
        assert said in str(first.hear())
    heir = the_one_who_speaks(*others)
    assert heir.hear() == "making"
    heir.go("'by the heir'")

    assert [other.hear() for other in others] == ["by the heir"] * 2


@pytest.mark.parametrize("error", [NO_MODEL, DEAD])
def test_an_error_of_labs_own_is_everyones_and_nobody_tries_again(run, error):
    first = run.process("once", "folder")
    assert first.hear() == "making"
    second = run.process("once", "folder")
    run.await_asked(2)
    first.go(f"fail(pickle.loads({pickle.dumps(error)!r}))")

    later = run.process("once", "folder")
    assert [told(member.hear()) for member in (first, second, later)] == [told(error)] * 3
    assert told(run.errors()["folder"]) == told(error)


def test_a_value_that_the_hub_cannot_read_is_an_error_for_everyone(run):
    first = run.process("once", "folder")
    assert first.hear() == "making"
    first.go("Foreign()")

    errors = [first.hear(), run.process("once", "folder").hear()]
    assert [(type(error), "Foreign" in error.what) for error in errors] == [(InfraError, True)] * 2


@pytest.mark.parametrize("awake", [True, False], ids=["while it waits", "just before"])
def test_who_was_interrupted_while_waiting_gets_no_answer_to_another_question(run, awake: bool):
    """As pytest-timeout does: it raises in the main thread, whatever that waits for. A signal that comes just before
    the wait does not end it, like one that another thread gets."""

    def interrupt() -> None:
        run.await_asked(2)
        if awake:
            os.kill(os.getpid(), signal.SIGUSR1)
        else:
            signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

    maker = run.process("once", "slow")
    assert maker.hear() == "making"
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    with ThreadPoolExecutor() as pool, remote_member(run.door.address) as member:
        interrupted = pool.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            member.once("slow", lambda: pytest.fail("made twice"))
        interrupted.result()
        with pytest.raises(Closed):
            member.once("quick", lambda: "the quick one")
    signal.signal(signal.SIGUSR1, before)


# --- servers ------------------------------------------------------------------------------------------------------


def test_a_server_is_started_once_for_all_processes_and_stopped_when_the_last_one_is_gone(run):
    first, second = (run.process("use", run.spec("ready")) for _ in range(2))
    pid, pids = first.hear(), run.servers[0].pids
    assert pid in pids
    assert second.hear() == pid

    first.kill()
    second.go()
    assert second.hear() == "left"
    second.go()
    assert second.hear() == pid, "it was not kept while nobody used it"
    assert len(run.servers) == 1

    second.kill()
    assert wait_gone(pids, 10) == []


def test_a_server_that_nobody_keeps_is_stopped_after_the_block(run):
    spec = run.spec("ready")
    with member_of(run) as mine, member_of(run) as other:
        with mine.server(spec, keep=False), other.server(spec, keep=False) as server:
            assert alive([server.pid])
        assert alive([server.pid]) == []
        with other.server(spec), mine.server(spec, keep=False) as server:
            pass
        assert alive([server.pid]), "the other one keeps it"
    assert alive([server.pid]) == []
    assert len(run.servers) == 2


def test_who_waited_gets_the_server_though_the_one_that_started_it_leaves_at_once(run):
    run.before = lambda message: run.await_waiting() if message == "building" else None
    spec = run.spec("ready")

    def use_it() -> int | None:
        with member_of(run) as member, member.server(spec, keep=False) as server:
            return server.pid

    with ThreadPoolExecutor() as pool:
        users = [pool.submit(use_it) for _ in range(2)]
        assert len({user.result() for user in users}) == len(run.servers) == 1


def test_attaching_to_a_running_server_takes_no_time_and_tells_all_of_it(run):
    spec = run.spec("ready", kv_bits=8)
    with member_of(run) as mine, mine.server(spec) as server, remote_member(run.door.address) as other:
        began = time.monotonic()
        with other.server(spec) as same:
            assert time.monotonic() - began < 1
        assert same == server
    (made,) = run.servers
    assert (server.base_url, server.model_name, server.engine, server.device) == (made.base_url, "ready", "cpu", None)
    assert (server.shell_command, server.log_path) == (made.shell_command, made.log_path)


def test_unlike_servers_have_logs_of_their_own_even_if_their_short_names_are_alike(run):
    one, other = run.spec("ready"), run.spec("ready", session_len=2048)
    assert one.label == other.label
    with member_of(run) as member, member.server(one) as first, member.server(other) as second:
        assert first.log_path != second.log_path


def test_processes_read_the_memory_of_a_server_and_say_progress_where_the_user_sees_it(run):
    spec = run.spec("ready")
    with remote_member(run.door.address) as member, member.server(spec) as server:
        peak = member.peak(spec)
        assert (peak.device, peak.total_mib) == ("cpu", 4096)
        assert 2 < peak.used_mib < psutil.Process(server.pid).memory_info().rss // 2**20 + 5
        member.progress("calibrating", done=3, total=4)
    run.await_said("calibrating 3/4")


# --- servers that fail --------------------------------------------------------------------------------------------


def test_a_start_that_fails_is_told_to_all_who_wait_and_to_later_ones_and_not_tried_again(run):
    spec = run.spec("out_of_memory")
    run.before = lambda message: run.await_asked(2) if message == "building" else None
    first, second = (run.process("use", spec) for _ in range(2))
    error = first.hear()
    with member_of(run) as later, pytest.raises(ServerError) as caught, later.server(spec):
        pass

    assert told(error) == told(second.hear()) == told(caught.value)
    assert error.diagnosis.kind == "gpu_memory"
    assert error.log_lines[0] == "lmdeploy - INFO - loading"
    assert len(run.servers) == 1


def test_a_server_that_died_in_use_is_a_finding_and_not_started_again(run):
    spec = run.spec("ready")
    with remote_member(run.door.address) as user, user.server(spec) as server:
        kill_by_request(server, run.servers[0].pids)
        with pytest.raises(ServerError, match="died while it was in use") as caught:
            user.peak(spec)
    with member_of(run) as later, pytest.raises(ServerError) as again, later.server(spec):
        pass

    assert caught.value.diagnosis.kind == "gpu_memory"
    assert told(again.value) == told(caught.value)
    assert len(run.servers) == 1


def test_a_start_that_nobody_waits_for_any_more_is_given_up(run):
    starter = run.process("use", run.spec("never_ready"))
    run.await_said("Loading for ever")
    pids = run.servers[0].pids
    assert len(alive(pids)) == 2

    starter.kill()
    assert wait_gone(pids, 10) == []
    assert not is_open(run.servers[0].port)

    run.said = queue.Queue()
    run.process("use", run.spec("never_ready"))
    run.await_said("the server is starting")
    assert len(run.servers) == 2, "a later one may want it"


def test_a_start_goes_on_without_the_one_who_caused_it_if_somebody_else_waits(run):
    starter = run.process("use", run.spec("slow"))
    run.await_said("the server is starting")
    other = run.process("use", run.spec("slow"))
    run.await_asked(2)
    starter.kill()

    assert other.hear() == run.servers[0].pid
    assert len(run.servers) == 1


# --- the end ------------------------------------------------------------------------------------------------------


def test_when_the_run_ends_all_who_wait_are_told_and_nothing_is_left(run):
    user, maker = run.process("use", run.spec("ready")), run.process("once", "folder")
    assert (user.hear(), maker.hear()) == (run.servers[0].pid, "making")
    starter, waiter = (run.process("use", run.spec("never_ready")) for _ in range(2))
    idle = run.process("once", "folder")
    run.await_said("Loading for ever")
    run.await_asked(5)
    pids = [pid for server in run.servers for pid in server.pids]
    assert len(alive(pids)) == 4

    began = time.monotonic()
    run.door.close()
    run.close()

    assert time.monotonic() - began < 8
    assert alive(pids) == []
    assert [type(each.hear()) for each in (starter, waiter, idle)] == [Closed] * 3
    user.go()
    assert user.hear() == "left"
    user.go()
    assert isinstance(user.hear(), Closed)
    with pytest.raises(Closed), remote_member(run.door.address):
        pass


def test_a_server_that_is_ready_at_the_very_moment_when_the_run_ends_is_stopped(run):
    ending = threading.Thread(target=run.close)

    def end_the_run(message: str) -> None:
        if "is ready" in message:
            ending.start()
            run.claim(run.join(), "a value that the other one makes")  # until the hub has closed

    run.before = end_the_run
    assert run.claim(run.join(), "a value that the other one makes") == ("make", None)
    with member_of(run) as member, pytest.raises(Closed), member.server(run.spec("ready")):
        pytest.fail("the run is over")
    ending.join()
    assert run.servers[0].pids == []


def test_a_stranger_without_the_key_cannot_join(run):
    with pytest.raises(AuthenticationError), remote_member(replace(run.door.address, key=b"guessed")):
        pytest.fail("let in")
    with remote_member(Address.from_dict(run.door.address.to_dict())) as member:
        assert member.once("value", lambda: 1) == 1


def test_a_stranger_that_connects_and_says_nothing_keeps_nobody_out_and_nobody_in(run):
    with socket.socket(socket.AF_UNIX) as silent, socket.socket(socket.AF_UNIX) as late:
        silent.connect(run.door.address.path)
        with remote_member(run.door.address) as member:
            assert member.once("value", lambda: 1) == 1
        late.connect(run.door.address.path)
        began = time.monotonic()
        run.door.close()
        assert time.monotonic() - began < 3


@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_a_long_name_of_the_folder_for_temporary_files_is_no_obstacle(tmp_path, monkeypatch, system):
    monkeypatch.setattr("lab3.hub_wire.sys.platform", system)
    (long := tmp_path / ("long" * 30)).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with HubServer(Hub()) as door, remote_member(door.address) as member:
        assert member.once("value", lambda: 1) == 1
        folder = Path(door.address.path.lstrip("\0")).parent
        assert system == "linux" or folder.stat().st_mode & 0o077 == 0
    assert system == "linux" or not folder.exists()


def test_a_hub_that_is_killed_leaves_no_server_and_its_members_are_told(tmp_path):
    process = Process(HUB, str(tmp_path))
    address, pids = process.hear()
    assert len(alive(pids)) == 2
    with remote_member(address) as member:
        process.kill()
        with pytest.raises(Closed):
            member.once("value", lambda: 1)
    assert wait_gone(pids, 10) == []
    assert address.path[1:] not in Path("/proc/net/unix").read_text()


# --- servers on GPUs ----------------------------------------------------------------------------------------------


def test_unlike_servers_run_at_once_on_cards_of_their_own(run, cards):
    cards("GPU-a", "GPU-b")
    one, other = (run.spec("ready", engine="auto", kv_bits=bits) for bits in (16, 4))
    with member_of(run) as member, member.server(one) as first, member.server(other) as second:
        assert (first.device, second.device) == ("GPU-a", "GPU-b")
        for server in (first, second):
            assert psutil.Process(server.pid).environ()["CUDA_VISIBLE_DEVICES"] == server.device


def test_a_server_that_is_kept_and_not_used_makes_room_for_another(run, cards):
    cards("GPU-a")
    with member_of(run) as mine, member_of(run) as other:
        with mine.server(run.spec("ready", engine="pytorch")) as unused:
            pass
        assert alive([unused.pid])
        with other.server(run.spec("ready", engine="pytorch", kv_bits=4)) as server:
            assert server.device == unused.device == "GPU-a"
            assert alive([unused.pid]) == []


def test_a_server_in_use_keeps_its_card_until_its_user_is_done(run, cards):
    cards("GPU-a")
    with ThreadPoolExecutor() as pool, member_of(run) as mine, member_of(run) as other:
        with mine.server(run.spec("ready", engine="pytorch")) as used:
            waiting = pool.submit(other.server(run.spec("ready", engine="pytorch", kv_bits=4)).__enter__)
            for _ in range(2):  # when it says so again it has looked for servers to stop
                run.await_said("waiting for a GPU: GPU-a is held by process")
            assert alive([used.pid])
            assert not waiting.done()
        assert waiting.result().device == "GPU-a"
    assert alive([used.pid]) == []


def test_what_a_card_has_served_is_not_checked_by_lmdeploy_again(run, cards):
    cards("GPU-a", "GPU-b")

    def checks(server):
        return psutil.Process(server.pid).environ().get("LMDEPLOY_ENABLE_CHECK_ENV") != "0"

    with member_of(run) as member:
        first, again = (run.spec("ready", engine="pytorch", kv_bits=bits) for bits in (16, 4))
        with member.server(first) as server:
            assert (server.device, checks(server)) == ("GPU-a", True)
            with member.server(again) as elsewhere:
                assert (elsewhere.device, checks(elsewhere)) == ("GPU-b", True)
    with member_of(run) as member:
        with member.server(again) as server:
            assert (server.device, checks(server)) == ("GPU-a", False)
        with member.server(run.spec("slow", engine="pytorch")) as another:
            assert checks(another)


def test_the_peak_of_a_servers_memory_is_its_cards_and_stays(run, cards):
    machine, spec = cards("GPU-a", "GPU-b"), run.spec("ready", engine="pytorch")
    with member_of(run) as member, member.server(spec):
        for used_mib in (20616, 4):
            machine.gpus[0].used_mib = used_mib
            assert (member.peak(spec).uuid, member.peak(spec).used_mib) == ("GPU-a", 20616)


def test_quantizing_takes_the_card_of_a_server_that_nobody_uses_and_keeps_servers_off_it(run, cards):
    cards("GPU-a")
    spec = run.spec("ready", engine="pytorch")
    with ThreadPoolExecutor() as pool, member_of(run) as mine, member_of(run) as other:
        with mine.server(spec) as unused:
            pass
        with other.gpu():
            assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-a"
            assert alive([unused.pid]) == []
            waiting = pool.submit(mine.server(spec).__enter__)
            run.await_said("waiting for a GPU: GPU-a is held by process")
            assert not waiting.done()
        assert "CUDA_VISIBLE_DEVICES" not in os.environ
        assert waiting.result().device == "GPU-a"


def test_who_dies_with_a_lent_card_gives_it_back(run, cards):
    cards("GPU-a")
    dying = run.process("lend", "")
    assert dying.hear() == {"CUDA_VISIBLE_DEVICES": "GPU-a"}
    dying.kill()
    with member_of(run) as member, member.gpu():
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-a"


def test_without_a_gpu_nothing_is_lent_and_nobody_waits(run):
    with member_of(run) as mine, member_of(run) as other, mine.gpu(), other.gpu():
        assert "CUDA_VISIBLE_DEVICES" not in os.environ
