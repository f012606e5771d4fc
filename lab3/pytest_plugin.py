"""pytest for the lab: options that name the subject, fixtures that share servers, verdicts that go into reports.

`pytest tests/lab` judges the reference, `--base-url URL` a server that somebody started, `--submission DIR` a folder.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from lab3.errors import InfraError, Lab3Error, UsageError

if TYPE_CHECKING:
    from lab3.hub import RunningServer
    from lab3.hub_wire import Member
    from lab3.quantize import QuantizeResult
    from lab3.serve_flags import Engine
    from lab3.subject import Subject
    from lab3.verdicts import Check, Verdict

_DEFAULT_OUT = "lab3-suite"
_MARKERS = {
    "gpu": "needs an NVIDIA GPU (run by `tox -e gpu`)",
    "slow": "starts a server or quantizes a model",
    "corpus": "grades all reports of tests/reports/corpus (run by `tox -e corpus`)",
    "cluster": "starts a local Ray cluster (run by `tox -e cluster`)",
    "needs_browser": "needs Chromium and its driver",
}
_SEEN_IN_SCRIPTS = frozenset({"chat", "tools", "nonce", "scripts"})  # sections of the evidence on a submission
_VERDICT = pytest.StashKey["Verdict"]()
_SETTINGS = pytest.StashKey["Settings"]()

# --- options -------------------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Options of the command line, and those that an ini file may set."""
    group = parser.getgroup("lab3", "the LMDeploy quantization lab")
    if not pluginmanager.hasplugin("base_url"):  # pytest-base-url has the same option
        group.addoption("--base-url", metavar="URL", help="judge the server that runs there (with or without /v1)")
    group.addoption("--api-key", metavar="K", default="none", help="for a server of --base-url that wants one")
    group.addoption("--submission", metavar="DIR", type=Path, help="judge a submitted folder")
    group.addoption("--lab3-model", metavar="M", help="the lab's model: embedded, a folder or a hub id (embedded)")
    engines = ("auto", "turbomind", "pytorch", "cpu")
    group.addoption("--lab3-engine", choices=engines, help="LMDeploy's engine (auto: the hardware chooses)")
    group.addoption("--lab3-fresh", action="store_true", help="quantize anew, whatever the cache holds")
    group.addoption("--lab3-out", metavar="DIR", help=f"report.json and the servers' logs go there ({_DEFAULT_OUT})")
    group.addoption("--lab3-samples", metavar="N", type=int, help="samples of what is random (20)")
    what = "what the server promises: lmdeploy, all, or names with commas; the rest is not judged (lmdeploy)"
    group.addoption("--lab3-capabilities", metavar="LIST", help=what)
    for name in ("lab3_model", "lab3_engine", "lab3_out", "lab3_samples", "lab3_capabilities"):
        parser.addini(name, f"default of --{name.replace('_', '-')}")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the options say."""

    kind: Literal["reference", "server", "submission"]
    base_url: str
    api_key: str
    submission: Path | None
    model: str
    source: str | None  # the model, if it was named
    engine: Engine | Literal["auto"]
    fresh: bool
    out: Path
    samples: int
    capabilities: frozenset[str]

    @property
    def subject(self) -> str:
        """The subject in words."""
        return {"server": self.base_url, "submission": str(self.submission), "reference": self.model}[self.kind]


def _settings(config: pytest.Config) -> Settings:
    """The options, checked. Raises pytest.UsageError."""
    base_url, submission = config.getoption("base_url", None), config.getoption("submission")
    if base_url and submission:
        raise pytest.UsageError("--base-url and --submission are two subjects: name one")
    if submission is not None and not submission.is_dir():
        raise pytest.UsageError(f"--submission {submission}: there is no such folder")
    if base_url:
        from lab3.openai_client import api_url

        try:
            api_url(base_url)
        except UsageError as error:
            raise pytest.UsageError(f"--base-url: {error.what} {error.todo}") from None
    samples = _asked(config, "lab3_samples", "20")
    if not str(samples).isdigit() or int(samples) < 1:
        raise pytest.UsageError(f"--lab3-samples {samples}: take at least one sample")
    engine = _asked(config, "lab3_engine", "auto")
    if engine not in ("auto", "turbomind", "pytorch", "cpu"):  # argparse does not see the ini file
        raise pytest.UsageError(f"lab3_engine = {engine}: choose auto, turbomind, pytorch or cpu")
    return Settings(
        kind="server" if base_url else "submission" if submission else "reference",
        base_url=base_url or "",
        api_key=config.getoption("api_key"),
        submission=submission,
        model=_asked(config, "lab3_model", "embedded"),
        source=_asked(config, "lab3_model", None),
        engine=engine,
        fresh=config.getoption("lab3_fresh"),
        out=Path(_asked(config, "lab3_out", _DEFAULT_OUT)).absolute(),
        samples=int(samples),
        capabilities=_capabilities(_asked(config, "lab3_capabilities", "lmdeploy")),
    )


def _asked(config: pytest.Config, name: str, default: str | None) -> Any:
    """From the command line, else from the ini file, else the default."""
    asked = config.getoption(name, None)
    return asked if asked is not None else config.getini(name) or default


def _capabilities(text: str) -> frozenset[str]:
    from lab3.protocol_facts import ALL_CAPABILITIES, LMDEPLOY_CAPABILITIES

    if text in ("lmdeploy", "all"):
        return LMDEPLOY_CAPABILITIES if text == "lmdeploy" else ALL_CAPABILITIES
    named = {name.strip() for name in text.split(",") if name.strip()}
    if unknown := named - ALL_CAPABILITIES:
        offered = ", ".join(sorted(ALL_CAPABILITIES))
        raise pytest.UsageError(f"--lab3-capabilities: no {', '.join(sorted(unknown))}; there are: {offered}")
    return frozenset(named)


def pytest_configure(config: pytest.Config) -> None:
    """Check the options before anything is collected, and join the run."""
    for name, text in _MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {text}")
    config.stash[_SETTINGS] = settings = _settings(config)
    if _is_worker(config):
        from lab3.serve_guard import die_with_parent

        die_with_parent()  # a controller that is killed cannot end its workers
        return
    from lab3.pytest_run import Run

    config.pluginmanager.register(Run(config, settings), "lab3-run")


def pytest_report_header(config: pytest.Config) -> str:
    """The subject, the engine, the card and the versions that the verdicts depend on."""
    settings = config.stash[_SETTINGS]
    versions = ", ".join(f"{name} {_version(name)}" for name in ("lmdeploy", "torch", "transformers", "openai"))
    return f"lab3: {settings.kind} ({settings.subject}); {_hardware(settings)}; {versions}"


def _hardware(settings: Settings) -> str:
    if settings.kind == "server":
        return "whatever engine it runs on"
    from lab3.nvml import devices

    cards = [f"{device.name}, {device.total_mib} MiB" for device in devices()]
    engine = settings.engine if settings.engine != "auto" or cards else "auto (cpu)"
    return f"engine {engine}; {'; '.join(cards) or 'no NVIDIA GPU'}"


# --- fixtures ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def lab3_member(pytestconfig: pytest.Config) -> Iterator[Member]:
    """This process's part in the run: values are made once in all its processes, and servers are shared."""
    from lab3.hub_wire import Address, member_of, remote_member

    if _is_worker(pytestconfig):
        address = Address.from_dict(pytestconfig.workerinput["lab3_hub"])  # type: ignore[attr-defined]
        joining = remote_member(address)
    else:
        joining = member_of(pytestconfig.pluginmanager.getplugin("lab3-run").hub)  # type: ignore[union-attr]
    with joining as member:
        yield member


@pytest.fixture(scope="session")
def quantized_model(lab3_member: Member, pytestconfig: pytest.Config) -> Callable[..., QuantizeResult]:
    """A factory: `quantized_model(folder, **options of lab3.quantize.quantize)`, once for each in the whole run.

    The folder is kept between runs, by content; --lab3-fresh makes it anew.
    """
    settings = pytestconfig.stash[_SETTINGS]

    def make(folder: Path, **options: Any) -> QuantizeResult:
        from lab3.quantize import quantize
        from lab3.quantize_cache import quantize_cached

        def work() -> QuantizeResult:
            with lab3_member.gpu():
                if not settings.fresh:
                    return quantize_cached(folder, options, progress=lab3_member.progress)
                out = settings.out / "quantized" / f"{folder.name}-w4a16{'-' if options else ''}{_suffix(options)}"
                return quantize(folder, out, overwrite=True, **options, progress=lab3_member.progress)

        return lab3_member.once(f"quantized {folder} {sorted(options.items())}", work)

    return make


@pytest.fixture(scope="session")
def lab3_subject(
    lab3_member: Member, quantized_model: Callable[..., QuantizeResult], pytestconfig: pytest.Config
) -> Subject:
    """What is judged."""
    from lab3.subject import OtherServer, Reference

    settings = pytestconfig.stash[_SETTINGS]
    common: dict[str, Any] = {
        "samples_count": settings.samples,
        "capabilities": settings.capabilities,
        "progress": lab3_member.progress,
    }
    if settings.kind == "server":
        return OtherServer(lab3_member, settings.base_url, api_key=settings.api_key, **common)
    if settings.submission is not None:
        from lab3.grading.subject import Submission
        from lab3.models import resolve

        folder, progress = settings.submission, lab3_member.progress
        return Submission(
            lab3_member,
            str(folder),
            engine=settings.engine,
            source=settings.source,
            fallback=lambda: quantized_model(resolve(settings.model, progress=progress)).out,
            seed_name=folder.resolve().name,
            **common,
        )
    return Reference(lab3_member, settings.model, engine=settings.engine, quantize=quantized_model, **common)


@pytest.fixture
def api_server(
    lab3_member: Member, lab3_subject: Subject, pytestconfig: pytest.Config
) -> Iterator[Callable[..., RunningServer]]:
    """A factory: `api_server(weights="w4a16", kv_bits=4, cache_ratio=0.4, engine="auto")`, for this test.

    `weights` is "w4a16" or "plain" (the lab's model) or a model folder. Servers that are equal in all of it are one
    server for the whole run, and stay up for the next test.
    """
    from lab3.hub import ServerSpec
    from lab3.subject import Reference

    with ExitStack() as held:

        def attach(
            weights: str | Path = "w4a16", *, kv_bits: int = 4, cache_ratio: float = 0.4, engine: str | None = None
        ) -> RunningServer:
            folder = Path(weights)
            if weights in ("w4a16", "plain"):
                if not isinstance(lab3_subject, Reference):
                    pytest.skip("only the reference has a model that lab3 may serve in any way")
                folder = lab3_subject.w4a16() if weights == "w4a16" else lab3_subject.folder()
            wanted: Any = engine or pytestconfig.stash[_SETTINGS].engine
            spec = ServerSpec(model=str(folder), kv_bits=kv_bits, cache_ratio=cache_ratio, engine=wanted)
            return held.enter_context(lab3_member.server(spec))

        yield attach


@pytest.fixture
def verdict(check: Check, lab3_subject: Subject, request: pytest.FixtureRequest) -> Verdict:
    """The verdict of the test's `check`. Trouble with the machine is an error of the test, not a fail."""
    from lab3.blame import blame
    from lab3.verdicts import verdict_of

    evidence = lab3_subject.evidence(*check.sections)
    if lab3_subject.name == "submission" and _SEEN_IN_SCRIPTS.intersection(check.sections):
        lab3_subject.evidence("scripts")  # for the report; nothing else needs a server for what the folder shows
    found = verdict_of(check, evidence)
    if found.status == "fail" and check.section in ("chat", "tools", "samples"):
        looked = lab3_subject.evidence("diagnosis")
        evidence = replace(evidence, diagnosis=looked.diagnosis)
    found = replace(found, blame=blame(found, check.section, evidence))
    request.node.stash[_VERDICT] = found
    for name in ("id", "task", "title", "title_zh", "status", "points", "max_points"):
        request.node.user_properties.append((f"lab3.{name}", getattr(found, name)))
    if bad := next((each for each in evidence.trouble.values() if each.fault in ("machine", "unknown")), None):
        raise InfraError(str(bad))
    return found


def expect(verdict: Verdict) -> None:
    """End the test as the verdict says: unknown is a skip, and a check of mere ability an expected failure."""
    if verdict.status == "unknown":
        pytest.skip(verdict.reason)
    if verdict.status == "fail":
        told = f"{verdict.id}: {verdict.reason}"
        if verdict.expected is not None:
            told += f"\nexpected: {verdict.expected}\nfound: {verdict.actual}"
        if verdict.blame and verdict.blame.text != verdict.reason:
            told += f"\n{verdict.blame}"
        if not verdict.required:
            pytest.xfail(told)
        pytest.fail(told, pytrace=False)


# --- what becomes of a test ----------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, Any, Any]:
    """Hang the verdict on the test's report, and tell trouble with the machine without a traceback."""
    report = yield
    found = item.stash.get(_VERDICT, None)
    from lab3.report.json_report import plain

    if found is not None and (call.when == "call" or (call.when == "setup" and report.failed)):
        report.lab3_verdict = plain(asdict(found))
    error = call.excinfo.value if call.excinfo else None
    if isinstance(error, Lab3Error):
        report.lab3_trouble = _whose(error)
        if item.config.getoption("tbstyle") == "auto":
            report.longrepr = str(error)
    return report


def _whose(error: Lab3Error) -> str:
    from lab3.serve import ServerError

    if isinstance(error, ServerError) and error.diagnosis.fault in ("model", "usage"):
        return "subject"
    return "machine" if isinstance(error, InfraError) else "usage"


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def _suffix(options: dict[str, Any]) -> str:
    return "-".join(f"{name}={value}" for name, value in sorted(options.items())).replace("/", "_")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
