"""`lab3 doctor` on machines that this one is not: with a GPU, with an old driver, with packages that do not fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest

from lab3 import doctor, nvml, ports
from lab3.doctor import Finding, Status, examine, misfits_of, torch_cuda, transformers_spec, variants
from lab3.errors import InfraError
from lab3.report.text import print_findings

ROOT = Path(__file__).parents[2]
OFFLINE = {**os.environ, "HF_HUB_OFFLINE": "1"}
H100 = nvml.Device(0, "NVIDIA H100 80GB HBM3", "GPU-1", 81559, "9.0", "580.95.05")


class FakeNvml:
    """One H100 with one process on it, as far as the doctor asks."""

    NVMLError = type("NVMLError", (Exception,), {})
    nvmlMemory_v2 = 2

    def __init__(self, *, used_mib: int = 20000, cuda: int = 13000) -> None:
        self.used_mib, self.cuda = used_mib, cuda

    def nvmlInit(self): ...
    def nvmlShutdown(self): ...
    def nvmlSystemGetDriverVersion(self):
        return "580.95.05"

    def nvmlSystemGetCudaDriverVersion(self):
        return self.cuda

    def nvmlDeviceGetCount(self):
        return 1

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetUUID(self, _handle):
        return "GPU-1"

    def nvmlDeviceGetName(self, _handle):
        return "NVIDIA H100 80GB HBM3"

    def nvmlDeviceGetCudaComputeCapability(self, _handle):
        return 9, 0

    def nvmlDeviceGetMemoryInfo(self, _handle, version=0):
        return SimpleNamespace(total=81559 * 2**20, used=self.used_mib * 2**20, reserved=0)

    def nvmlDeviceGetComputeRunningProcesses(self, _handle):
        return [SimpleNamespace(pid=os.getpid(), usedGpuMemory=self.used_mib * 2**20)]


@pytest.fixture
def gpu(monkeypatch):
    def install(**facts):
        monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(**facts))

    return install


def about(topic: str, environ=OFFLINE) -> list[Finding]:
    return [finding for finding in examine(environ=environ) if finding.topic == topic]


def test_it_looks_at_everything_in_time_and_as_plain_data():
    started = time.monotonic()
    findings = examine(environ=OFFLINE)
    assert time.monotonic() - started < 5
    topics = {finding.topic for finding in findings}
    assert {"system", "python", "memory", "gpu", "packages", "port", "disk", "hub", "tools", "variants"} <= topics
    plain = json.loads(json.dumps([finding.to_dict() for finding in findings]))
    assert plain[0].keys() == {"topic", "status", "text", "todo"}
    assert {each["status"] for each in plain} <= {"ok", "warn", "problem", "info"}
    assert all(each["todo"] for each in plain if each["status"] in ("warn", "problem"))


def test_it_imports_neither_torch_nor_lmdeploy():
    code = "import sys; from lab3.doctor import examine; examine(environ={'HF_HUB_OFFLINE': '1'}); print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).split()
    assert "lab3.doctor" in loaded
    assert {"torch", "transformers", "lmdeploy", "huggingface_hub"}.isdisjoint(loaded)


def test_a_probe_that_hangs_or_breaks_holds_up_nobody():
    never = threading.Event()

    def hang():
        never.wait(30)
        return []

    def burst():
        raise RuntimeError("boom")

    fine = Finding("fine", "ok", "fine")
    started = time.monotonic()
    found = list(doctor._run_all({"slow": hang, "burst": burst, "fine": lambda: [fine]}, timeout_s=0.3))
    assert time.monotonic() - started < 2
    never.set()
    assert [each[0].topic for each in found] == ["slow", "burst", "fine"]
    assert "no answer within 0.3 s" in found[0][0].text
    assert "boom" in found[1][0].text
    assert found[2] == [fine]


class TestGpu:
    def test_it_is_named_with_its_memory_and_who_holds_it(self, gpu):
        gpu(used_mib=20000)
        card, holder = about("gpu")
        assert card.status == "warn"
        assert "H100" in card.text
        assert "61559 of 81559 MiB free" in card.text
        assert "capability 9.0, driver 580.95.05" in card.text
        assert f"process {os.getpid()}" in holder.text
        assert "20000 MiB" in holder.text
        assert holder.todo == f"`kill {os.getpid()}` frees it"

    def test_a_holder_of_another_container_is_not_to_be_killed_by_its_number(self, gpu, monkeypatch):
        gpu(used_mib=20000)
        monkeypatch.setattr(nvml, "_process_name", lambda _pid: None)
        _, holder = about("gpu")
        assert "of another container" in holder.text
        assert holder.todo == "end it in its own container"

    def test_an_idle_one_is_ok(self, gpu):
        gpu(used_mib=500)
        assert about("gpu")[0].status == "ok"

    def test_a_hidden_one_is_none(self, gpu):
        gpu()
        (only,) = about("gpu", {**OFFLINE, "CUDA_VISIBLE_DEVICES": ""})
        assert "no NVIDIA GPU" in only.text
        assert "CUDA_VISIBLE_DEVICES" in only.text

    @pytest.mark.parametrize(
        ("built", "driver", "status"),
        [("13.0", 13000, "ok"), ("13.2", 13000, "ok"), ("12.8", 13000, "ok"), ("13.0", 12080, "problem"),
         (None, 13000, "problem")],
    )  # fmt: skip
    def test_torchs_cuda_must_not_be_newer_than_the_drivers(self, gpu, monkeypatch, built, driver, status):
        gpu(cuda=driver)
        monkeypatch.setattr(doctor, "torch_cuda", lambda: built)
        (cuda,) = about("cuda")
        assert cuda.status == status


class TestVariants:
    def test_an_h100_runs_all(self, monkeypatch):
        monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
        assert set(variants(H100).values()) == {""}

    def test_without_a_gpu_only_the_cpu(self):
        runs = variants(None)
        assert runs["CPU"] == ""
        assert runs["GPU TurboMind"] == runs["GPU PyTorch"] == "no NVIDIA GPU"

    def test_an_old_gpu_runs_neither_engine(self):
        old = nvml.Device(0, "GTX 1080", "GPU-1", 8192, "6.1", "580")
        assert "below 7.0" in variants(old)["GPU TurboMind"]

    def test_triton_needs_a_compiler_and_turbomind_does_not(self, monkeypatch):
        monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
        monkeypatch.delenv("CC", raising=False)
        assert "compiler" in variants(H100)["GPU PyTorch"]
        assert variants(H100)["GPU TurboMind"] == ""

    @pytest.mark.parametrize(
        ("lacking", "remedy"),
        [("triton", "pip install"), ("lmdeploy", "pip install"), ("cuda", "pip install"), ("compiler", "apt-get")],
    )
    def test_what_can_be_installed_is_told_with_its_installation(self, gpu, monkeypatch, lacking, remedy):
        gpu()
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.setattr(doctor.shutil, "which", lambda name: None if lacking == "compiler" else f"/usr/bin/{name}")
        monkeypatch.setattr(doctor, "_version", lambda name: None if name == lacking else "1")
        monkeypatch.setattr(doctor, "torch_cuda", lambda: None if lacking == "cuda" else "13.0")
        hindered = [finding for finding in about("variants") if finding.status == "info"]
        assert hindered
        assert all(remedy in finding.todo for finding in hindered)


class TestPackages:
    def test_lmdeploys_own_sources_say_what_they_need(self):
        assert transformers_spec().startswith(">=4")
        assert torch_cuda() is None or torch_cuda()[0].isdigit()

    def test_what_is_missing_or_unfit_is_found(self, monkeypatch):
        wishes = [
            "torch<2",
            "no-such-package>=1",
            "pytest>=1",
            "other; extra == 'all'",
            "other; sys_platform == 'win32'",
        ]
        monkeypatch.setattr(metadata, "requires", lambda _: wishes)
        found = dict(misfits_of("lmdeploy"))
        assert found.keys() == {"torch", "no-such-package"}
        assert found["torch"] == f"lmdeploy needs torch<2, found {metadata.version('torch')}"
        assert "not installed" in found["no-such-package"]
        statuses = {finding.status for finding in about("packages")}
        assert statuses == {"info", "problem", "warn"}

    def test_a_transformers_that_lmdeploys_check_refuses(self, monkeypatch):
        monkeypatch.setattr(doctor, "transformers_spec", lambda: "<4")
        assert any("own check wants transformers <4" in f.text and f.status == "problem" for f in about("packages"))

    def test_no_lmdeploy(self, monkeypatch):
        monkeypatch.setattr(doctor, "_version", lambda name: None)
        (only,) = about("packages")
        assert only.status == "problem"
        assert set(variants(H100).values()) == {"lmdeploy is not installed"}


def test_a_taken_port_is_told_with_its_holder(monkeypatch):
    with ports.reserve("127.0.0.1") as sock:
        sock.listen(1)
        monkeypatch.setattr(doctor, "LMDEPLOY_PORT", sock.getsockname()[1])
        (port,) = about("port")
        assert port.status == "warn"
        assert f"process {os.getpid()}" in port.text
    (port,) = about("port")
    assert port.status == "ok"


def test_little_room_on_the_disk_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("LAB3_CACHE", str(tmp_path / "not" / "made" / "yet"))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage(100e9, 98e9, 2e9))
    cache, here = about("disk")
    assert (cache.status, here.status) == ("warn", "warn")
    assert "2 GB free" in cache.text
    assert not (tmp_path / "not").exists()


class TestHubs:
    @pytest.fixture
    def mirror(self):
        class Refuses(BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.send_response(403)
                self.end_headers()

            def log_message(self, *_): ...

        server = HTTPServer(("127.0.0.1", 0), Refuses)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        server.server_close()

    def test_each_is_asked_where_the_environment_says(self, mirror):
        with ports.reserve("127.0.0.1") as unused:
            nobody = f"http://127.0.0.1:{unused.getsockname()[1]}"
            environ = {"HF_ENDPOINT": mirror, "MODELSCOPE_DOMAIN": nobody}
            hugging_face, modelscope = about("hub", environ)
        assert hugging_face.status == "ok", "an answer is an answer, whatever it says"
        assert mirror in hugging_face.text
        assert modelscope.status == "info", "no network is no problem of the machine"
        assert nobody in modelscope.text

    def test_one_that_does_not_answer_is_not_waited_for(self, monkeypatch):
        monkeypatch.setattr(doctor, "HUB_TIMEOUT_S", 0.3)
        with ports.reserve("127.0.0.1") as silent:
            silent.listen(8)
            url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            started = time.monotonic()
            found = about("hub", {"HF_ENDPOINT": url, "MODELSCOPE_DOMAIN": url})
        assert time.monotonic() - started < 3
        assert [finding.status for finding in found] == ["info", "info"]

    def test_offline_asks_nobody(self, monkeypatch):
        monkeypatch.setattr(doctor, "_trouble", lambda url: pytest.fail(f"asked {url}"))
        (only,) = about("hub", {"HF_HUB_OFFLINE": "1"})
        assert only.status == "info"


def test_the_sandbox_is_tried_and_its_trouble_told(monkeypatch):
    def fails() -> None:
        raise InfraError("There is no sandbox.", why="no user namespaces", todo="allow them", kind="sandbox")

    monkeypatch.setattr("lab3.grading.sandbox.check_sandbox", fails)
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    sandbox, browser = about("tools")
    assert (sandbox.status, sandbox.todo) == ("info", "allow them")
    assert "no user namespaces" in sandbox.text
    assert browser.status == "info"


@pytest.mark.parametrize("status", get_args(Status))
def test_a_remedy_is_on_the_screen_whatever_the_status(status, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    print_findings([Finding("one", status, "what it is", "type [this]"), Finding("other", status, "nothing to do")])
    first, second, third = (line.split() for line in capsys.readouterr().out.splitlines())
    assert first == [status, "one", "what", "it", "is"]
    assert second == ["→", "type", "[this]"]
    assert third == [status, "other", "nothing", "to", "do"]


def test_a_machine_that_lacks_much_is_told_in_one_screen_with_every_remedy(gpu, monkeypatch, tmp_path, capsys):
    def fails() -> None:
        raise InfraError("There is no sandbox.", why="no user namespaces", todo="allow them", kind="sandbox")

    gpu(used_mib=20000)
    monkeypatch.setattr("lab3.grading.sandbox.check_sandbox", fails)
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    monkeypatch.setattr(doctor, "_trouble", lambda _url: "[Errno -2] Name or service not known")
    monkeypatch.setenv("LAB3_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("COLUMNS", "80")
    findings = examine(environ={})
    print_findings(findings)
    lines = capsys.readouterr().out.splitlines()
    shown = "".join("".join(lines).split())
    for finding in findings:
        assert "".join(f"{finding.text} → {finding.todo}".removesuffix(" → ").split()) in shown
    for todo in (f"`kill {os.getpid()}`", "HF_ENDPOINT", "MODELSCOPE_DOMAIN", "allow them", "chromium", "lab3 chat"):
        assert any(todo in finding.todo for finding in findings), todo
    assert max(map(len, lines)) <= 80
    assert len(lines) < 45
