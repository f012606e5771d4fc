"""What this machine can do for the lab: hardware, driver, versions, disk, network, and which variants can run.

Only probes, no imports of torch or LMDeploy: versions are read from package metadata, each probe has a time limit.
"""

from __future__ import annotations

import ast
import os
import platform
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from lab3 import nvml, ports
from lab3.cache import cache_root
from lab3.errors import Lab3Error
from lab3.serve_flags import OLDEST_CAPABILITY

Status = Literal["ok", "warn", "problem", "info"]

PROBE_TIMEOUT_S = 4.0
HUB_TIMEOUT_S = 2.5
LMDEPLOY_PORT = 23333
NEEDED_DISK_GB = 8  # the 1.8B model, its W4A16 copy and a download's temporary file
NEEDED_RAM_GB = 4  # the embedded model on the CPU with a server, or reading the 1.8B model's shards
_CORE = ("lmdeploy", "torch", "transformers", "triton", "xgrammar", "openai", "gradio")
_HUBS = (
    ("Hugging Face", "HF_ENDPOINT", "https://huggingface.co"),
    ("ModelScope", "MODELSCOPE_DOMAIN", "https://www.modelscope.cn"),
)


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report. `problem`: something of the lab cannot run; `warn`: it may go wrong."""

    topic: str
    status: Status
    text: str
    todo: str = ""

    def to_dict(self) -> dict[str, str]:
        """As JSON-ready values."""
        return asdict(self)


def examine(*, environ: Mapping[str, str] = os.environ, timeout_s: float = PROBE_TIMEOUT_S) -> list[Finding]:
    """Everything the doctor looks at, in a fixed order, in at most about `timeout_s` seconds. Never raises."""
    probes: dict[str, Callable[[], Iterable[Finding]]] = {
        "system": _system,
        "memory": _memory,
        "gpu": lambda: _gpu(environ),
        "packages": _packages,
        "port": _port,
        "disk": _disk,
        "hub": lambda: _hubs(environ),
        "embedded model": _embedded_model,
        "tools": _tools,
        "variants": lambda: _variants(environ),
    }
    return [finding for each in _run_all(probes, timeout_s=timeout_s) for finding in each]


def _run_all(probes: Mapping[str, Callable[[], Iterable[Finding]]], *, timeout_s: float) -> Iterator[list[Finding]]:
    """Side by side in daemon threads: a probe that hangs (a dead driver, disk or network) holds up nobody."""
    results: dict[str, list[Finding]] = {}

    def run(topic: str, probe: Callable[[], Iterable[Finding]]) -> None:
        try:
            found = list(probe())
        except Exception as error:  # a doctor that dies of a symptom is of no use
            what = error.what if isinstance(error, Lab3Error) else f"{type(error).__name__}: {error}"
            found = [Finding(topic, "warn", f"could not be examined: {what}")]
        results[topic] = found

    threads = {
        topic: threading.Thread(target=run, args=(topic, probe), name=f"doctor-{topic}", daemon=True)
        for topic, probe in probes.items()
    }
    deadline = time.monotonic() + timeout_s
    for thread in threads.values():
        thread.start()
    for topic, thread in threads.items():
        thread.join(max(0.0, deadline - time.monotonic()))
        hung = [Finding(topic, "warn", f"no answer within {timeout_s:g} s", "look at `dmesg` and at the network")]
        yield results.get(topic, hung)


def _system() -> Iterator[Finding]:
    machine = f"{platform.system()} {platform.release()} {platform.machine()}"
    fits = platform.system() == "Linux"
    todo = "" if fits else "LMDeploy's wheels are for Linux: use Linux, WSL 2 or a container"
    yield Finding("system", "ok" if fits else "problem", machine, todo)
    version = sys.version_info
    fits = (3, 11) <= version[:2] < (3, 14)
    yield Finding(
        "python",
        "ok" if fits else "problem",
        f"{platform.python_version()} ({sys.executable})",
        "" if fits else "use Python 3.11, 3.12 or 3.13",
    )


def _memory() -> Iterator[Finding]:
    import psutil

    ram = psutil.virtual_memory()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    free_gb = ram.available / 1e9
    yield Finding(
        "memory",
        "ok" if free_gb >= NEEDED_RAM_GB else "warn",
        f"{free_gb:.1f} GB of {ram.total / 1e9:.1f} GB RAM free, {cores} CPU cores",
        "" if free_gb >= NEEDED_RAM_GB else f"close other programs: {NEEDED_RAM_GB} GB should be free",
    )


def _gpu(environ: Mapping[str, str]) -> Iterator[Finding]:
    from lab3 import vram

    found = nvml.devices(environ=environ)
    if not found:
        hidden = "" if environ.get("CUDA_VISIBLE_DEVICES") is None else " (CUDA_VISIBLE_DEVICES is set)"
        yield Finding("gpu", "info", f"no NVIDIA GPU{hidden}: lab3 serves on the CPU")
        return
    for device in found:
        reading = vram.read(device=device.uuid, environ=environ)
        busy = reading.used_mib > 0.1 * reading.total_mib
        yield Finding(
            "gpu",
            "warn" if busy else "ok",
            f"{device.index}: {device.name}, {reading.total_mib - reading.used_mib} of {reading.total_mib} MiB free,"
            f" compute capability {device.compute_capability or 'unknown'}, driver {device.driver_version}",
            "VRAM figures will not be the lab's while others use the GPU" if busy else "",
        )
    for holder in nvml.holders(environ=environ):
        who = f"process {holder.pid} ({holder.name or 'of another container'})"
        # Of another container: here that number may be of a process that has nothing to do with it.
        todo = f"`kill {holder.pid}` frees it" if holder.name else "end it in its own container"
        yield Finding("gpu", "info", f"{who} holds {vram.format_mib(holder.used_mib)}", todo)
    yield _cuda()


def _cuda() -> Finding:
    """torch's CUDA against the newest that the driver supports; within one major version the older driver will do."""
    built = torch_cuda()
    with nvml.session() as lib:
        code = int(lib.nvmlSystemGetCudaDriverVersion())
    driver = f"{code // 1000}.{code % 1000 // 10}"
    if built is None:
        return Finding(
            "cuda", "problem", "torch is built without CUDA", "install torch with CUDA, as lmdeploy's wheel asks"
        )
    fits = int(built.split(".")[0]) <= code // 1000
    text = f"torch is built for CUDA {built}, the driver supports up to {driver}"
    return Finding("cuda", "ok" if fits else "problem", text, "" if fits else "update the NVIDIA driver")


def _packages() -> Iterator[Finding]:
    if _version("lmdeploy") is None:
        yield Finding("packages", "problem", "lmdeploy is not installed", "install lab3 with its dependencies")
        return
    seen = ", ".join(f"{name} {_version(name) or 'missing'}" for name in _CORE)
    misfits = [misfit for of in ("lmdeploy", "lab3") for misfit in misfits_of(of)]
    yield Finding("packages", "ok" if not misfits else "info", seen)
    for name, text in dict(misfits).items():
        core = name in _CORE
        yield Finding("packages", "problem" if core else "warn", text, "reinstall in a fresh virtual environment")
    spec, installed = transformers_spec(), _version("transformers")
    if spec and installed and not _satisfies(installed, spec):
        text = f"LMDeploy's own check wants transformers {spec}, found {installed}"
        yield Finding("packages", "problem", text, f"install 'transformers{spec}'")


def misfits_of(distribution: str) -> Iterator[tuple[str, str]]:
    """(name, what is wrong) for each unconditional requirement of an installed distribution that is not met."""
    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(text) for text in metadata.requires(distribution) or ()]
    except metadata.PackageNotFoundError:
        return
    for requirement in requirements:
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        installed = _version(requirement.name)
        wanted = f"{distribution} needs {requirement.name}{requirement.specifier}"
        if installed is None:
            yield requirement.name, f"{wanted}, which is not installed"
        elif not _satisfies(installed, str(requirement.specifier)):
            yield requirement.name, f"{wanted}, found {installed}"


def transformers_spec() -> str | None:
    """TRANSFORMERS_VERSION_SPEC of the installed LMDeploy, read from its source without importing it."""
    return _constant(_package_file("lmdeploy", "pytorch/check_env/transformers.py"), "TRANSFORMERS_VERSION_SPEC")


def torch_cuda() -> str | None:
    """The CUDA version that the installed torch is built for, read from torch/version.py; None for a CPU build."""
    return _constant(_package_file("torch", "version.py"), "cuda")


def _port() -> Iterator[Finding]:
    who = ports.holder(LMDEPLOY_PORT)
    if who is None:
        yield Finding("port", "ok", f"{LMDEPLOY_PORT} (LMDeploy's default) is free")
    else:
        todo = "stop it, or give the server another port"
        yield Finding("port", "warn", f"{LMDEPLOY_PORT} (LMDeploy's default) is taken by {who}", todo)


def _disk() -> Iterator[Finding]:
    places: dict[str, Path] = {"lab3's cache": cache_root(), "this folder": Path.cwd()}
    for what, wanted in places.items():
        place = next(folder for folder in (wanted, *wanted.parents) if folder.exists())
        free_gb = shutil.disk_usage(place).free / 1e9
        text = f"{what}: {free_gb:.0f} GB free at {wanted}"
        if not os.access(place, os.W_OK):
            yield Finding(
                "disk", "problem", f"{what}: {place} cannot be written", "set LAB3_CACHE, or change the folder"
            )
        elif free_gb < NEEDED_DISK_GB:
            yield Finding("disk", "warn", text, f"{NEEDED_DISK_GB} GB are needed for the 1.8B model and its copy")
        else:
            yield Finding("disk", "ok", text)


def _hubs(environ: Mapping[str, str]) -> Iterator[Finding]:
    if environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        yield Finding("hub", "info", "offline: only what is on the disk is used", "unset HF_HUB_OFFLINE")
        return
    answers: dict[str, str | None] = {}
    urls = {name: environ.get(variable) or default for name, variable, default in _HUBS}
    threads = [
        threading.Thread(target=lambda n=name, u=url: answers.update({n: _trouble(u)}), daemon=True)
        for name, url in urls.items()
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + HUB_TIMEOUT_S + 0.5  # a resolver may take longer than the request's own time-out
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    for name, variable, _ in _HUBS:
        url = urls[name]
        trouble = answers.get(name, f"no answer within {HUB_TIMEOUT_S:g} s")
        if trouble is None:
            yield Finding("hub", "ok", f"{name} answers at {url}")
        else:
            todo = f"pass a folder or `embedded`, or set {variable}=MIRROR"
            yield Finding("hub", "info", f"{name} does not answer at {url}: {trouble}", todo)


def _trouble(url: str) -> str | None:
    """Why the server at `url` cannot be reached; None if it answers, whatever it says."""
    import urllib.error
    import urllib.request

    if "://" not in url:
        url = f"https://{url}"
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=HUB_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return None
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))
    return None


def _embedded_model() -> Iterator[Finding]:
    ready = [folder for folder in cache_root().glob("SmolLM2-135M-Instruct-*") if (folder / "config.json").is_file()]
    if ready:
        yield Finding("embedded model", "ok", str(max(ready, key=lambda folder: folder.stat().st_mtime)))
    else:
        todo = "`lab3 chat Hi --model embedded` fetches it (93 MB)"
        yield Finding("embedded model", "info", f"not in {cache_root()} yet", todo)


def _tools() -> Iterator[Finding]:
    yield _sandbox()
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        yield Finding("tools", "info", "no Chromium: the web page cannot be photographed", "apt-get install chromium")
    else:
        yield Finding("tools", "ok", f"Chromium: {browser}")


def _sandbox() -> Finding:
    """Whether students' scripts could run: lab3's own does, in the sandbox that they get."""
    from lab3.grading.sandbox import check_sandbox

    try:
        check_sandbox()
    except Lab3Error as error:
        why = f" ({error.why})" if error.why else ""
        return Finding("tools", "info", f"submissions cannot be run: {error.what}{why}", error.todo)
    return Finding("tools", "ok", "submissions can be run in a sandbox")


def _variants(environ: Mapping[str, str]) -> Iterator[Finding]:
    found = nvml.devices(environ=environ)
    for variant, obstacle in variants(found[0] if found else None).items():
        todo = _REMEDIES.get(obstacle, "")
        yield Finding("variants", "info" if obstacle else "ok", f"{variant}: {obstacle or 'can run'}", todo)


_ANEW = "in lab3's folder type `pip install --force-reinstall .`"
_NO_CUDA, _NO_TURBOMIND = "torch is built without CUDA", "this lmdeploy is built without TurboMind"
_NO_TRITON, _NO_LMDEPLOY = "triton is not installed", "lmdeploy is not installed"
_NO_COMPILER = "Triton finds no C compiler"
_REMEDIES = dict.fromkeys((_NO_CUDA, _NO_TURBOMIND, _NO_TRITON, _NO_LMDEPLOY), _ANEW) | {
    _NO_COMPILER: "`apt-get install gcc libc6-dev`, or set CC"
}


def variants(device: nvml.Device | None) -> dict[str, str]:
    """The lab's variants, each with what keeps it from running here ("" if nothing does)."""
    no_gpu = "" if device else "no NVIDIA GPU"
    no_cuda = "" if torch_cuda() else _NO_CUDA
    capability = tuple(map(int, (device.compute_capability or "8.0").split("."))) if device else (0, 0)
    too_old = "" if capability >= OLDEST_CAPABILITY else "the GPU's compute capability is below 7.0"
    binary = _package_file("lmdeploy", "turbomind")
    no_turbomind = "" if binary and any(binary.glob("_turbomind*")) else _NO_TURBOMIND
    no_triton = "" if _version("triton") else _NO_TRITON
    compilers = ("gcc", "clang", "cc")
    no_compiler = "" if os.environ.get("CC") or any(map(shutil.which, compilers)) else _NO_COMPILER
    no_lmdeploy = "" if _version("lmdeploy") else _NO_LMDEPLOY
    return {
        "GPU TurboMind": no_lmdeploy or no_gpu or no_cuda or too_old or no_turbomind,
        "GPU PyTorch": no_lmdeploy or no_gpu or no_cuda or too_old or no_triton or no_compiler,
        "CPU": no_lmdeploy,
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _satisfies(version: str, specifier: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(specifier).contains(version, prereleases=True)


def _package_file(package: str, relative: str) -> Path | None:
    """A file of an installed package; `find_spec` of a top-level name imports nothing."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / relative
    return path if path.exists() else None


def _constant(source: Path | None, name: str) -> str | None:
    """The value of `NAME = "text"` in a Python file, without running it."""
    if source is None:
        return None
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        match node:
            case (
                ast.Assign(targets=[ast.Name(id=found)], value=ast.Constant(value=str(value)))
                | ast.AnnAssign(target=ast.Name(id=found), value=ast.Constant(value=str(value)))
            ) if found == name:
                return value
    return None
