"""A server's life, with stand-ins for LMDeploy that fail in every way; tests/integration serves with the real one."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest

from lab3 import ports
from lab3.diagnose import diagnose
from lab3.errors import InfraError, UsageError
from lab3.models import read_config
from lab3.serve import ApiServer, ServerError, attach
from lab3.serve_flags import choose_engine, gpu_capability, launcher_of, server_flags
from lab3.vram import Reading

pytestmark = pytest.mark.xdist_group("waiting")

FAKE = Path(__file__).parents[1] / "fake_servers" / "server.py"
ROOT = Path(__file__).parents[2]
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "vocab_size": 92544,
}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128}


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "tiny-chat")


@pytest.fixture
def fake(model, tmp_path, monkeypatch):
    """Builds an ApiServer that runs a stand-in; whatever a test forgets to stop is stopped after it."""
    servers = []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # the logs of servers that failed stay where they are

    def build(behaviour: str, **options) -> ApiServer:
        launcher = [sys.executable, "-S", str(FAKE), behaviour]
        options = {"engine": "pytorch", "timeout_s": 20.0, "grace_s": 5.0, "launcher": launcher} | options
        servers.append(ApiServer(model, **options))
        return servers[-1]

    yield build
    for server in servers:
        server.stop()


def write_model(folder: Path, quantization: dict | None = None, **changes: int) -> Path:
    folder.mkdir()
    config = CONFIG | changes if quantization is None else CONFIG | {"quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def alive(pids) -> list[int]:
    found = []
    for pid in pids:
        try:
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
        except psutil.NoSuchProcess:
            continue
    return found


def wait_gone(pids, timeout_s: float) -> list[int]:
    deadline = time.monotonic() + timeout_s
    while alive(pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return alive(pids)


class StrangersHandler(BaseHTTPRequestHandler):
    """A server of somebody else, which says 200 to everything."""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def stranger():
    servers = []

    def start(port: int = 0) -> HTTPServer:
        server = HTTPServer(("127.0.0.1", port), StrangersHandler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


class TestALifeWithoutTrouble:
    def test_it_is_ready_inside_the_block_and_gone_after_it(self, fake):
        with fake("ready") as server:
            pids, port, log = server.pids, server.port, server.log_path
            assert server.running()
            assert server.pid in pids
            assert server.base_url == f"http://127.0.0.1:{port}/v1"
            assert server.startup_seconds is not None
            assert server.startup_seconds < 20
            assert urllib.request.urlopen(f"{server.base_url}/models").status == 200
            assert "INFO:     Uvicorn running" in server.log_tail(5)
            assert len(alive(pids)) == 2  # the guard and the server
        assert alive(pids) == []
        assert not is_open(port)
        assert not server.running()
        assert not log.exists(), "a temporary log of a run without trouble stays behind"

    def test_a_slow_start_is_waited_for_and_reported(self, fake):
        said = []
        with fake("slow", progress=lambda message, **_: said.append(message)) as server:
            assert server.startup_seconds > 1.4
        assert any("Loading weights" in message and "s: " in message for message in said)
        assert "ready" in said[-1]

    def test_the_log_goes_where_it_was_asked_to_and_stays(self, fake, tmp_path):
        log = tmp_path / "deep" / "server.log"
        with fake("ready", log_path=log):
            pass
        assert "Uvicorn running" in log.read_text()

    def test_it_can_be_started_again_on_its_port(self, fake):
        server = fake("ready")
        for _ in range(2):
            with server:
                assert urllib.request.urlopen(f"{server.base_url}/models").status == 200

    def test_two_servers_at_once_get_different_ports(self, fake):
        assert len({fake("ready").port for _ in range(20)}) == 20

    def test_the_environment_is_passed_and_told(self, fake, tmp_path, monkeypatch):
        monkeypatch.setenv("LAB3_CPU_MEMORY", "2GiB")
        server = fake("ready", engine="cpu", env={"NOTE": "two words"})
        assert server.shell_command.startswith(f"LAB3_CPU_MEMORY=2GiB NOTE='two words' {sys.executable}")

    def test_attach_reads_what_another_one_serves(self, fake):
        with fake("ready", model_name="somebody-elses") as server:
            attached = attach(server.base_url.removesuffix("/v1"))
            assert attached.base_url == server.base_url
            assert attached.model_name == "somebody-elses"
            assert attached.running()
            server.stop()
            assert not attached.running()

    def test_attach_to_nobody_is_infrastructure_trouble(self):
        with pytest.raises(InfraError):
            attach(f"http://127.0.0.1:{ports_free()}", timeout_s=2.0)


class TestAServerThatDoesNotStart:
    def test_never_ready_ends_at_the_deadline(self, fake):
        started = time.monotonic()
        with pytest.raises(ServerError, match=r"not ready within 1\.5 s") as caught, fake("never_ready", timeout_s=1.5):
            pass
        assert 1.5 <= time.monotonic() - started < 4.5
        assert caught.value.diagnosis.kind == "hung"
        assert caught.value.log_lines == ["Loading for ever"]
        assert caught.value.log_path.read_text() == "Loading for ever\n"

    def test_503_for_ever_is_not_ready(self, fake):
        server = fake("unhealthy", timeout_s=1.5)
        with pytest.raises(ServerError, match="not ready"):
            server.start()
        assert not is_open(server.port)

    def test_exit_code_0_is_seen_at_once(self, fake):
        with pytest.raises(ServerError, match="exited with code 0") as caught:
            fake("exits_0").start()
        assert caught.value.diagnosis.kind == "exited"

    def test_out_of_memory_is_seen_at_once_and_named(self, fake):
        server = fake("out_of_memory")
        started = time.monotonic()
        with pytest.raises(ServerError) as caught:
            server.start()
        assert time.monotonic() - started < 5
        text = str(caught.value)
        assert caught.value.exit_code == 3
        assert "exited with code 1" in text
        assert "the GPU ran out of memory" in text
        assert "recognised by: torch.OutOfMemoryError" in text
        assert f"to reproduce: {server.shell_command}" in text
        assert "| lmdeploy - INFO - loading" in text

    def test_a_kill_by_the_kernel_is_told_from_an_exit(self, fake):
        with pytest.raises(ServerError, match="ended by signal 9") as caught:
            fake("oom_killed").start()
        assert caught.value.diagnosis.kind == "killed"

    def test_a_program_that_is_not_there(self, fake):
        with pytest.raises(ServerError, match="exited with code 127") as caught:
            fake("", launcher=["/nonexistent/lmdeploy"]).start()
        assert "cannot run /nonexistent/lmdeploy" in caught.value.log_lines[-1]

    def test_an_engine_process_does_not_outlive_a_crashed_server(self, fake, tmp_path):
        pid_file = tmp_path / "engine"
        with pytest.raises(ServerError):
            fake("crashes_and_leaves_engine", env={"DAEMON_PID_FILE": str(pid_file)}).start()
        assert alive([int(pid_file.read_text())]) == []
        assert (tmp_path / "engine.closed").exists(), "it was killed without a chance to close"

    def test_death_in_use_is_told_with_its_cause(self, fake):
        with fake("ready") as server:
            server.check_running()
            urllib.request.urlopen(f"{server.base_url}/die")
            assert wait_gone(server.pids, 5) == []
            assert not server.running()
            with pytest.raises(ServerError, match="died while it was in use") as caught:
                server.check_running()
        assert caught.value.diagnosis.kind == "gpu_memory"

    def test_ready_then_dead_is_seen(self, fake):
        with fake("ready_then_dead") as server:
            assert server.running()
            assert wait_gone(server.pids, 5) == []
            with pytest.raises(ServerError):
                server.check_running()


class TestAPortInTheWay:
    def test_a_taken_port_is_told_before_loading_with_its_holder(self, fake, stranger):
        port = stranger().server_address[1]
        with pytest.raises(InfraError, match=f"port {port} on 127.0.0.1 is taken") as caught:
            fake("ready", port=port)
        assert f"process {os.getpid()}" in caught.value.why
        assert f"kill {os.getpid()}" in caught.value.todo

    def test_a_stranger_that_answers_200_is_not_our_server(self, fake, stranger):
        server = fake("never_ready")
        stranger(server.port)
        started = time.monotonic()
        with pytest.raises(InfraError, match=f"port {server.port}") as caught:
            server.start()
        assert time.monotonic() - started < 5, "the stranger should be noticed long before the time-out"
        assert f"process {os.getpid()}" in caught.value.why

    def test_a_port_taken_between_two_starts_is_told_before_loading(self, fake, stranger):
        said = []
        server = fake("ready", progress=lambda message, **_: said.append(message))
        server.stop()
        stranger(server.port)
        with pytest.raises(InfraError, match="is taken"):
            server.start()
        assert said == [], "a process was started although its port was taken"

    @pytest.mark.parametrize("port", [0, 65536, -1])
    def test_a_number_that_is_no_port(self, fake, port):
        with pytest.raises(UsageError, match="not a TCP port"):
            fake("ready", port=port)

    def test_an_address_of_another_machine(self, fake):
        with pytest.raises(UsageError, match=r"cannot listen on 192\.0\.2\.1"):
            fake("ready", host="192.0.2.1")

    def test_a_server_on_all_addresses_is_reached_at_this_machines_own(self, fake):
        with fake("ready", host="0.0.0.0") as server:
            assert server.base_url.startswith("http://127.0.0.1:")


class TestNothingSurvives:
    def test_an_exception_in_the_block(self, fake):
        server, pids = fake("ready"), []

        def use_it():
            with server:
                pids.extend(server.pids)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            use_it()
        log = server.log_path
        assert pids
        assert alive(pids) == []
        assert log.exists(), "the log that may explain the trouble is gone"

    def test_ctrl_c_while_it_starts(self, fake):
        seen = []

        def interrupt(message, **_):
            seen.extend(server.pids)
            if len(seen) > 1:
                raise KeyboardInterrupt

        server = fake("never_ready", progress=interrupt)
        with pytest.raises(KeyboardInterrupt):
            server.start()
        assert len(seen) > 1
        assert alive(seen) == []

    def test_a_server_that_ignores_sigterm_is_killed_after_the_grace_period(self, fake):
        with fake("ignores_sigterm", grace_s=1.0) as server:
            pids = server.pids
            started = time.monotonic()
        assert 1.0 <= time.monotonic() - started < 4
        assert alive(pids) == []

    def test_a_server_that_heeds_sigterm_is_not_waited_for(self, fake):
        with fake("ready", grace_s=10.0):
            started = time.monotonic()
        assert time.monotonic() - started < 3

    def test_a_daemonised_grandchild(self, fake, tmp_path):
        pid_file = tmp_path / "daemon"
        with fake("leaves_daemon", env={"DAEMON_PID_FILE": str(pid_file)}, grace_s=1.0):
            daemon = int(pid_file.read_text())
            assert alive([daemon]) == [daemon]
        assert alive([daemon]) == []

    def test_the_guard_is_killed(self, fake):
        with fake("ignores_sigterm", grace_s=1.0) as server:
            pids = server.pids
            os.kill(pids[0], signal.SIGKILL)
            assert wait_gone(pids, 3) == []

    def test_a_stubborn_engine_is_found_even_after_the_guard_was_killed(self, fake):
        with fake("stubborn_engine") as server:
            guard, api_server, engine = server.pids
            assert server.pid == api_server
            os.kill(guard, signal.SIGKILL)
            assert wait_gone([guard, api_server], 3) == []
            assert alive([engine]) == [engine]
        assert alive([engine]) == []

    def test_another_python_that_ends_takes_nothing_along(self, fake):
        """At its exit mirakuru kills whatever bears a mark that contains its own pid, as any number may."""
        from mirakuru.base import ENV_UUID
        from mirakuru.base_env import processes_with_env

        with fake("ready") as server:
            for digit in "0123456789":
                assert processes_with_env(ENV_UUID, digit).isdisjoint(server.pids)

    @pytest.mark.parametrize("behaviour", ["ready", "never_ready", "leaves_daemon"])
    def test_the_parent_is_killed(self, model, tmp_path, behaviour):
        """What a cancelled CI job, or the kernel short of memory, does to pytest."""
        pid_file = tmp_path / "daemon"
        script = f"""
import sys, time
from pathlib import Path
from lab3.serve import ApiServer
server = ApiServer({str(model)!r}, engine="pytorch", grace_s=1.0, log_path=Path({str(tmp_path / "log")!r}),
    launcher=[sys.executable, "-S", {str(FAKE)!r}, {behaviour!r}], env={{"DAEMON_PID_FILE": {str(pid_file)!r}}},
    progress=lambda message, **_: print(*server.pids, flush=True))
server.start()
time.sleep(600)
"""
        parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        pids: list[int] = []
        while len(pids) < 2 or (behaviour == "leaves_daemon" and not pid_file.exists()):
            pids = [int(pid) for pid in parent.stdout.readline().split()]
        if behaviour == "leaves_daemon":
            pids.append(int(pid_file.read_text()))
        assert set(alive(pids)) == set(pids)
        parent.kill()
        parent.wait()
        parent.stdout.close()
        assert wait_gone(pids, 5) == []


class TestTheCommandLine:
    def test_what_the_lab_asks_for(self, tmp_path):
        model = write_model(tmp_path / "internlm2_5-1_8b-chat-w4a16", AWQ)
        server = ApiServer(model, kv_bits=4, cache_ratio=0.4, engine="turbomind", extra_args=["--tp", "1"])
        words = " ".join(server.command)
        assert words.startswith(f"{sys.executable} -m lmdeploy serve api_server {model} --server-name 127.0.0.1")
        assert f"--server-port {server.port} --model-name internlm2_5-1_8b-chat-w4a16 --backend turbomind" in words
        assert "--quant-policy 4 --cache-max-entry-count 0.4" in words
        assert "--model-format awq" in words
        assert "--tool-call-parser internlm" in words
        assert words.endswith("--tp 1")
        assert "--device" not in words
        assert "--enable-prefix-caching" not in words, "on a card the lab's own flags are enough"
        server.stop()

    def test_without_a_gpu_labs_cpu_device_serves(self):
        assert launcher_of("cpu") == [sys.executable, "-m", "lab3.cpu", "lmdeploy"]

    @pytest.mark.parametrize("engine", ["pytorch", "cpu"])
    def test_lmdeploy_itself_accepts_every_flag(self, model, engine):
        """Its parser is asked, so that a flag renamed in a new release is caught without a model or a GPU."""
        flags = server_flags(
            read_config(write_model(model.parent / "awq", AWQ)),
            engine=engine,
            kv_bits=8,
            cache_ratio=0.5,
            session_len=2048,
            max_batch_size=4,
        )
        flags += ["--server-name", "127.0.0.1", "--server-port", "1", "--model-name", "x"]
        offered = lmdeploy_flags()
        assert [flag for flag in flags if flag.startswith("--") and flag not in offered] == []

    @pytest.mark.parametrize(("kv_bits", "policy"), [(16, "0"), (8, "8"), (4, "4")])
    def test_kv_bits_become_a_quant_policy(self, model, kv_bits, policy):
        flags = server_flags(read_config(model), engine="turbomind", kv_bits=kv_bits, cache_ratio=0.8)
        assert flags[flags.index("--quant-policy") + 1] == policy
        assert "--model-format" not in flags

    def test_the_cpu_device_is_asked_for(self, model):
        flags = server_flags(read_config(model), engine="cpu", kv_bits=4, cache_ratio=0.5)
        assert flags[:4] == ["--backend", "pytorch", "--device", "cpu"]

    @pytest.mark.parametrize(
        "wrong",
        [
            {"kv_bits": 2},
            {"cache_ratio": 0.0},
            {"cache_ratio": 1.0},
            {"cache_ratio": float("nan")},
            {"dtype": "float32"},
            {"session_len": 0},
            {"max_batch_size": -1},
            {"engine": "vllm"},
        ],
    )
    def test_what_lmdeploy_would_refuse_is_refused_before_loading(self, model, wrong):
        with pytest.raises(UsageError) as caught:
            ApiServer(model, **({"engine": "pytorch"} | wrong))
        assert caught.value.todo

    def test_a_folder_that_is_none(self, tmp_path):
        with pytest.raises(UsageError, match="is not a model folder") as caught:
            ApiServer(tmp_path / "missing")
        assert "no such folder" in caught.value.why
        with pytest.raises(UsageError, match="is not a model folder"):
            ApiServer(tmp_path)

    @pytest.mark.parametrize(
        ("quantization", "capability", "engine"),
        [
            (None, None, "cpu"),
            (AWQ, None, "cpu"),
            (None, (7, 0), "turbomind"),
            (AWQ, (9, 0), "turbomind"),
            (AWQ | {"group_size": 64}, (9, 0), "pytorch"),
        ],
    )
    def test_the_hardware_and_the_folder_choose_the_engine(self, tmp_path, quantization, capability, engine):
        assert choose_engine(read_config(write_model(tmp_path / "m", quantization)), capability) == engine

    def test_turbomind_and_group_size_64_do_not_go_together(self, tmp_path):
        model = write_model(tmp_path / "m", AWQ | {"group_size": 64})
        with pytest.raises(UsageError, match="TurboMind cannot serve") as caught:
            ApiServer(model, engine="turbomind")
        assert "64" in caught.value.why

    def test_turbomind_is_not_chosen_for_an_int4_cache_of_heads_that_kill_it(self, tmp_path):
        narrow, wide = (write_model(tmp_path / str(dim), head_dim=dim) for dim in (64, 128))
        chosen = {
            (model.name, bits): choose_engine(read_config(model), (9, 0), kv_bits=bits)
            for model in (narrow, wide)
            for bits in (16, 8, 4)
        }
        assert chosen.pop(("64", 4)) == "pytorch"
        assert set(chosen.values()) == {"turbomind"}
        with pytest.raises(UsageError, match="TurboMind cannot serve") as caught:
            ApiServer(narrow, engine="turbomind", kv_bits=4)
        assert "64 wide" in caught.value.why
        assert "8 bits" in caught.value.todo

    @pytest.mark.parametrize("engine", ["auto", "turbomind", "pytorch"])
    def test_a_gpu_that_is_too_old_is_refused_and_the_cpu_is_not(self, model, monkeypatch, engine):
        monkeypatch.setattr("lab3.serve_flags.gpu_capability", lambda *_: (6, 1))
        with pytest.raises(UsageError, match=r"compute capability is 6\.1"):
            ApiServer(model, engine=engine)
        assert ApiServer(model, engine="cpu").engine == "cpu"

    @pytest.mark.parametrize(("total_mib", "todo"), [(4000, "quantize it: W4A16 takes about"), (2000, "larger card")])
    def test_a_card_too_small_is_told_before_anything_is_loaded(self, fake, monkeypatch, total_mib, todo):
        card = Reading("card", "GPU-1", 0, total_mib, None, None, "nvml")
        monkeypatch.setattr(ApiServer, "_read_vram", lambda _: card)
        server = fake("ready", engine="turbomind")
        with pytest.raises(UsageError, match="3795 MiB of weights do not fit") as caught:
            server.start()
        assert todo in caught.value.todo
        assert not server.running()
        assert server.log_path is None
        ports.reserve("127.0.0.1", server.port).close()
        monkeypatch.setattr(ApiServer, "_read_vram", lambda _: dataclasses.replace(card, total_mib=8000))
        monkeypatch.setattr(ApiServer, "_wait_vram", lambda _: None)
        assert server.start().running()

    def test_a_card_that_others_fill_is_the_machine_s_trouble(self, fake, monkeypatch):
        card = Reading("card", "GPU-1", 20000, 24000, None, None, "nvml")
        monkeypatch.setattr(ApiServer, "_read_vram", lambda _: card)
        server = fake("ready", engine="turbomind")
        with pytest.raises(InfraError, match="of which others hold 20000") as caught:
            server.start()
        assert caught.value.kind == "gpu_memory"
        assert not server.running()
        monkeypatch.setattr(ApiServer, "_read_vram", lambda _: dataclasses.replace(card, used_mib=10000))
        monkeypatch.setattr(ApiServer, "_wait_vram", lambda _: None)
        assert server.start().running()
        assert server.foreign_mib == 10000

    def test_hidden_gpus_are_no_gpus(self):
        assert gpu_capability({"CUDA_VISIBLE_DEVICES": ""}) is None
        assert gpu_capability({"CUDA_VISIBLE_DEVICES": "-1"}) is None

    def test_importing_it_is_cheap(self):
        code = "import sys, lab3.serve; print(*sys.modules)"
        loaded = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).split()
        assert "lab3.serve" in loaded
        heavy = {"torch", "transformers", "lmdeploy", "requests", "mirakuru", "openai", "psutil"}
        assert heavy.isdisjoint(loaded)


def is_open(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def ports_free() -> int:
    with ports.reserve("127.0.0.1") as sock:
        return sock.getsockname()[1]


def lmdeploy_flags() -> set[str]:
    """Every "--flag" in the source of LMDeploy's command line; importing it would take seconds."""
    import importlib.util
    import re

    folder = Path(importlib.util.find_spec("lmdeploy").origin).parent / "cli"
    text = "".join((folder / name).read_text() for name in ("serve.py", "utils.py"))
    return set(re.findall(r"'(--[a-z0-9-]+)'", text))


class TestTheDiagnosis:
    @pytest.mark.parametrize(
        ("line", "kind"),
        [
            ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB.", "gpu_memory"),
            ("[TM][FATAL] core/allocator.cc: CUDA runtime error: out of memory", "gpu_memory"),
            ("RuntimeError: No enough gpu memory for kv cache.", "kv_cache_memory"),
            ("ERROR:    [Errno 98] error while attempting to bind on address ('127.0.0.1', 2): address already in use",
             "address_in_use"),
            ("RuntimeError: CUDA error: no kernel image is available for execution on the device",
             "compute_capability"),
            ("RuntimeError: The NVIDIA driver on your system is too old (found version 11040).", "driver_too_old"),
            ("RuntimeError: Found no NVIDIA driver on your system.", "no_gpu"),
            ("ValueError: Couldn't instantiate the backend tokenizer from one of: ", "missing_tokenizer"),
            ('ValueError: Unsupported group_size=64 for model_format="awq". Supported group_size values: 128.',
             "awq_group_size"),
            ('AssertionError: mismatched quant method: user input "gptq" vs model quant_config "awq"',
             "format_mismatch"),
            ("ValueError: Please pass the argument `trust_remote_code=True` to allow custom code to be run.",
             "trust_remote_code"),
            ("OSError: [Errno 28] No space left on device", "disk_full"),
            ("ModuleNotFoundError: No module named 'xgrammar'", "import_error"),
            ("ImportError: libcublas.so.12: cannot open shared object file: No such file", "shared_library"),
            ("LMDeploy requires transformers>=4.56.0, but found transformers==4.40.0.", "transformers_version"),
            ("RuntimeError: failed to locate weight files under '/m'", "missing_weights"),
            ("The checkpoint you are trying to load has model type `x` but Transformers does not recognize this "
             "architecture.", "unknown_model_type"),
            ("lmdeploy serve api_server: error: argument --quant-policy: invalid _parse value: '3'", "bad_flag"),
            ("RuntimeError: Failed to find C compiler. Please specify via CC environment variable.", "compiler"),
            ("RuntimeError: [enforce fail] . DefaultCPUAllocator: can't allocate memory", "host_memory"),
            ("torch.AcceleratorError: CUDA error: an illegal memory access was encountered", "gpu_fault"),
            ("RPCServerDeadError: PyTorch ZMQ engine process is not alive.", "engine_died"),
        ],
    )  # fmt: skip
    def test_a_line_of_a_real_log(self, line, kind):
        last = "lmdeploy - ERROR - engine process is not alive."  # what often stands below the cause
        found = diagnose(f"2026-01-01 - lmdeploy - INFO - loading\n{line}\n{last}\n", returncode=1)
        assert found.kind == kind
        assert found.line == (last if kind == "engine_died" else line.strip())
        assert found.why
        assert found.todo

    @pytest.mark.parametrize(
        ("returncode", "kind"),
        [
            (None, "hung"),
            (0, "exited"),
            (1, "unknown"),
            (2, "bad_flag"),
            (-9, "killed"),
            (-11, "crashed"),
            (-15, "stopped"),
        ],
    )
    def test_without_a_known_line_the_exit_code_speaks(self, returncode, kind):
        found = diagnose("INFO: all is well\n", returncode=returncode)
        assert (found.kind, found.line) == (kind, "")

    def test_the_error_is_quoted_and_not_the_source_line_that_raises_it(self):
        source = "    assert free > 0, 'No enough gpu memory for state cache.'"
        error = "AssertionError: No enough gpu memory for state cache."
        assert diagnose(f"{source}\n    ^^^^\n{error}\n", returncode=1).line == error

    def test_the_models_faults_are_not_the_machines(self):
        assert diagnose("Unsupported group_size=64", returncode=1).fault == "model"
        assert diagnose("CUDA out of memory", returncode=1).fault == "machine"

    def test_a_healthy_log_accuses_nobody(self):
        log = "INFO:     Uvicorn running on http://127.0.0.1:1\nlmdeploy - WARNING - Fallback to pytorch engine\n"
        assert diagnose(log, returncode=1).kind == "unknown"


def test_a_template_that_hides_tools_is_refused_unless_no_tools_are_wanted(fake, model):
    (model / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    refused = fake("ready")
    with pytest.raises(UsageError, match="does not show tools"):
        refused.start()
    assert not refused.running()
    assert refused.log_path is None
    assert not ports.listens(psutil.pids(), refused.port)
    server = fake("ready", tool_call_parser=None).start()
    assert server.running()
    assert "--tool-call-parser" not in server.command
