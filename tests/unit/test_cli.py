"""The command line: quick help, exit codes, JSON, errors that say what to do."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lab3 import cli
from lab3.checks import judge
from lab3.errors import InfraError, UsageError
from lab3.evidence import Evidence, Trouble
from lab3.places import check_beside, check_place, make_folder
from lab3.report import build_report, write_report
from lab3.report.json_report import plain
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


@pytest.mark.parametrize(("log", "said"), [("there", "exists"), ("there/below.log", "cannot be written")])
def test_a_log_that_cannot_be_kept_is_refused_before_a_server_starts(log: str, said: str, tmp_path, capsys):
    (tmp_path / "there").write_text("of another server")
    assert cli.main(["serve", "embedded", "--log", str(tmp_path / log)]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "--log" in told
    assert (tmp_path / "there").read_text() == "of another server"


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


def nothing_works(*_, **__):
    raise AssertionError("work began")


@pytest.fixture
def writers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Commands that write a folder, with all but the place in order; any of them fails if its work begins."""
    for work in (
        "lab3.models.resolve",
        "lab3.lab.MemoryLog",
        "lab3.lab.Hub",
        "lab3.grading.batch.rubric_key",
        "lab3.reports.batch._graded",
        "lab3.report.markdown_homework.write_homework",
    ):
        monkeypatch.setattr(work, nothing_works)
    lab_folder, submission, report = tmp_path / "lab", tmp_path / "submission", tmp_path / "report.md"
    submission.mkdir()
    report.write_text("# A report")
    write_report(plain(build_report(GOOD, judge(GOOD))), lab_folder / "report.json")
    return {
        "run": ["run"],
        "quantize": ["quantize", "embedded"],
        "grade": ["grade", str(submission)],
        "grade-reports": ["grade-reports", str(report)],
        "report": ["report", str(lab_folder), "--markdown"],
    }


@pytest.mark.parametrize(
    "place",
    ["file", "file/below", "x" * 300, "/proc/nothing/x"],
    ids=["a file", "below a file", "too long", "below proc"],
)
@pytest.mark.parametrize("command", ["run", "quantize", "grade", "grade-reports", "report"])
def test_a_place_that_cannot_be_written_is_wrong_usage_before_any_work(
    writers, command: str, place: str, tmp_path: Path, capsys
):
    if place.startswith("/proc") and not Path("/proc/self").exists():
        pytest.skip("needs /proc")
    (tmp_path / "file").write_text("precious")
    before = sorted(tmp_path.rglob("*"))

    assert cli.main([*writers[command], "--out", str(tmp_path / place), "--quiet", "--json"]) == 2
    told, said = capsys.readouterr()
    fault = json.loads(told)
    assert fault["exit_code"] == 2
    assert str(tmp_path / place) in fault["error"]["what"]
    assert "another" in fault["error"]["todo"]
    assert fault["error"]["what"] in said
    assert "Traceback" not in said
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "precious"


def test_a_folder_in_which_nothing_can_be_made_is_told_though_it_is_there():
    if not Path("/proc/self").exists():
        pytest.skip("needs /proc")
    done = run("run", "--model", "/no/such/model", "--out", "/proc")
    assert done.returncode == 2
    assert "/proc cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


def test_looking_at_a_place_makes_nothing_and_follows_no_dead_link(tmp_path: Path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    check_place(tmp_path / "new" / "folder")
    check_beside(tmp_path / "new" / "folder")
    with pytest.raises(UsageError, match="link cannot be written"):
        make_folder(tmp_path / "link", option="--there")
    assert [path.name for path in tmp_path.iterdir()] == ["link"]
    make_folder(tmp_path / "new" / "folder")
    make_folder(tmp_path / "new" / "folder")
    assert not list((tmp_path / "new" / "folder").iterdir())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_or_broken_disk_is_no_wrong_place(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def mkdtemp(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("tempfile.mkdtemp", mkdtemp)
    with pytest.raises(InfraError, match=os.strerror(number)):
        make_folder(tmp_path / "out")


@pytest.mark.parametrize(
    ("number", "said"), [(errno.ENOSPC, "the disk is full"), (errno.EIO, "a disk or the network fails")]
)
def test_a_disk_that_fails_at_the_end_is_the_machines_trouble(
    lab, number: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    def write(*_):
        raise OSError(number, os.strerror(number), str(tmp_path / "report.json"))

    lab(with_server(cache_ratio=0.8))  # a check failed, too
    monkeypatch.setattr("lab3.report.write_report", write)
    assert cli.main(["run", "--out", str(tmp_path), "--quiet"]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert os.strerror(number) in err
    assert str(tmp_path / "report.json") in err
    assert f"why:        {said}" in err
    assert "what to do:" in err
    assert "Traceback" not in err

    assert cli.main(["run", "--out", str(tmp_path), "--quiet", "--json"]) == 3
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert told["exit_code"] == 3
    assert said in told["error"]["why"]
    assert all(told["error"].values())
    assert "Traceback" not in err


def test_other_troubles_of_the_system_are_told_and_a_closed_pipe_is_none(monkeypatch: pytest.MonkeyPatch, capsys):
    def ends_with(error: BaseException) -> tuple[int, str]:
        def examine():
            raise error

        monkeypatch.setattr("lab3.doctor.examine", examine)
        return cli.main(["doctor"]), capsys.readouterr().err

    code, said = ends_with(TimeoutError("nobody answered"))  # without a number
    assert code == 3
    assert "nobody answered" in said
    assert ends_with(OSError())[0] == 3
    assert ends_with(BrokenPipeError(errno.EPIPE, "Broken pipe")) == (0, "")
    assert ends_with(KeyboardInterrupt()) == (130, "interrupted\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_an_output_that_is_full_is_no_failed_check(arguments: tuple[str, ...]):
    command = [sys.executable, "-m", "lab3", "vram", "measure", "--device", "cpu", *arguments]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=buffered)
        assert (done.returncode, "the disk is full" in done.stderr) == (3, True)
        assert "Traceback" not in done.stderr
        assert "Exception ignored" not in done.stderr
        assert subprocess.run(command, stdout=full, stderr=full, env=buffered).returncode == 3
    end, pipe = os.pipe()
    os.close(end)
    with os.fdopen(pipe, "w") as closed:
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, env=buffered)
    assert (done.returncode, done.stderr) == (0, "")


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
