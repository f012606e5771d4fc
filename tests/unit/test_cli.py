"""The command line: quick help, exit codes, JSON, errors that say what to do."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lab3 import cli
from lab3.evidence import Evidence, Trouble
from tests.unit.test_checks import GOOD, with_server


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "lab3", *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", [(), ("run",), ("quantize",), ("serve",), ("chat",), ("funcall",), ("doctor",)])
def test_every_command_has_help(command: tuple[str, ...]):
    done = run(*command, "--help")
    assert done.returncode == 0
    assert "usage: lab3" in done.stdout
    assert not command or "--json" in done.stdout


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom lab3.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'lmdeploy', 'transformers', 'openai', 'rich', 'requests'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("fly",),
        ("quantize", "embedded"),
        ("chat", "hello"),
        ("chat", "hello", "--base-url", "http://x", "--model", "embedded"),
        ("serve", "embedded", "--kv-bits", "5"),
        ("serve", "no-such-folder-at-all/"),
        ("quantize", "/no/such/folder", "--out", "x"),
    ],
)
def test_wrong_usage_exits_2(arguments: tuple[str, ...]):
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.strip()
    assert "Traceback" not in done.stderr


def test_no_server_is_trouble_with_the_machine_and_exits_3():
    done = run("chat", "hello", "--base-url", "http://127.0.0.1:9/v1", "--json")
    assert done.returncode == 3
    told = json.loads(done.stdout)
    assert told["exit_code"] == 3
    assert told["error"]["todo"]


NO_SERVER = Trouble(fault="machine", kind="machine", text="no server")


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch):
    """`lab3 run` with its evidence given: what it makes of it is what is tested here."""

    def give(evidence: Evidence) -> None:
        monkeypatch.setattr("lab3.lab.run_lab", lambda model, out, **_: evidence)

    return give


@pytest.mark.parametrize(
    ("evidence", "code"),
    [
        (GOOD, 0),
        (with_server(cache_ratio=0.8), 1),
        (replace(GOOD, chat=None, tools=(), trouble={"chat": NO_SERVER, "tools": NO_SERVER}), 3),
    ],
    ids=["good", "failed", "trouble"],
)
def test_run_writes_the_report_and_exits_by_the_verdicts(lab, evidence, code: int, tmp_path: Path, capsys):
    lab(evidence)
    assert cli.main(["run", "--out", str(tmp_path / "out"), "--json", "--quiet"]) == code
    printed = json.loads(capsys.readouterr().out)
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert printed == written
    assert written["schema"] == "lab3/1"
    assert set(written) == {"schema", "subject", "environment", "evidence", "verdicts", "score", "max_score"}
    assert {"id", "task", "title", "status", "points", "max_points", "reason", "expected", "actual", "source"} <= set(
        written["verdicts"][0]
    )
    assert written["score"] == sum(v["points"] for v in written["verdicts"])
    written_files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written_files == ["report.html", "report.json"], "nothing temporary is left"


def test_run_prints_a_table_that_a_person_can_read(lab, tmp_path: Path, capsys):
    lab(with_server(cache_ratio=0.8))
    assert cli.main(["run", "--out", str(tmp_path), "--quiet"]) == 1
    out = capsys.readouterr().out
    assert "The weights are W4A16" in out
    assert "fail" in out
    assert "score 95 of 100" in out


def test_trouble_that_touches_many_checks_is_told_at_length_once(lab, tmp_path: Path, capsys):
    trouble = Trouble(text="no model\n  because: hubless\n  do: take a path", kind="network", fault="machine")
    lab(replace(GOOD, chat=None, tools=(), trouble={"chat": trouble, "tools": trouble}))
    assert cli.main(["run", "--out", str(tmp_path), "--quiet"]) == 3
    out = capsys.readouterr().out
    assert out.count("hubless") == 1
    assert out.count("above)") > 3


def test_an_engine_that_wants_a_gpu_is_refused_before_anything_is_done(lab, monkeypatch, tmp_path: Path, capsys):
    lab(GOOD)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for command in (["run", "--out", str(tmp_path / "out")], ["serve", str(tmp_path)]):
        assert cli.main([*command, "--engine", "turbomind", "--quiet"]) == 3
        assert "needs an NVIDIA GPU" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_report_that_cannot_be_written_whole_is_not_written(tmp_path: Path):
    from lab3.report import write_report

    path = tmp_path / "report.json"
    path.write_text("the old one")
    with pytest.raises(TypeError):
        write_report({"evidence": object()}, path)
    assert path.read_text() == "the old one"
    assert list(tmp_path.iterdir()) == [path]


def test_vram_measure_reads_the_device():
    done = run("vram", "measure", "--device", "cpu", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["used_mib"] > 0


def test_the_memory_of_a_process_that_there_is_not_is_wrong_usage():
    done = run("vram", "measure", "--device", "cpu", "--pid", str(2**22 + 1))
    assert (done.returncode, "there is no process" in done.stderr) == (2, True)


def test_figures_are_shown_to_a_person_without_python(capsys):
    facts = {
        "seconds": 38.1427627635900036,
        "used_mib": 66447.0,
        "perplexity": 7.13712,
        "none": None,
        "notices": (),
        "each": [0.1, 0.25, 0.3, 0.2, 0.15],
    }
    cli._show(cli._parser().parse_args(["doctor"]), facts)
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert (shown["seconds"], shown["used_mib"], shown["perplexity"]) == ("38.1", "66447.0", "7.137")
    assert shown["none"] == shown["notices"] == "-"
    assert shown["each"] == "0.1 to 0.3, 5 values (all of them with --json)"


def test_doctor_answers_in_one_screen():
    done = run("doctor", "--json")
    assert done.returncode == 0
    findings = json.loads(done.stdout)["findings"]
    assert {"topic", "status", "text", "todo"} <= set(findings[0])
    assert all(finding["todo"] for finding in findings if finding["status"] == "problem")
    assert len(findings) < 50


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_python_loses_is_told_all_the_same():
    class Interrupted:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)  # KeyboardInterrupt cannot leave a `__del__`

    before = signal.getsignal(signal.SIGTERM)
    with cli._terminated_as_interrupted() as ended:
        assert not ended()
        Interrupted()
        assert ended()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before
