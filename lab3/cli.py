"""The command line: arguments in, one call, its result out. No logic of the lab lives here."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lab3 import __version__
from lab3.errors import Lab3Error, UsageError
from lab3.garbage import collect_rarely
from lab3.places import check_beside, refused
from lab3.progress import Progress
from lab3.report.command import add_arguments as add_page_arguments
from lab3.reports.command import add_arguments as add_report_arguments
from lab3.threads import wait_patiently
from lab3.web.command import add_arguments as add_web_arguments

MODEL_HELP = (
    "`embedded` (SmolLM2-135M-Instruct, no hub needed), a folder, or a hub id such as internlm/internlm2_5-1_8b-chat"
)


_MOST_SHOWN = 4  # numbers of a list
_FEW_DIGITS = 10.0  # below it a figure is shown with four digits, from it on with one after the point
_ROOT_HELP = "where models may lie that a submission names and does not hold"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0 all well, 1 a check failed, 2 wrong usage, 3 trouble with the machine."""
    arguments = _parser().parse_args(argv)
    wait_patiently()
    collect_rarely()
    try:
        code = int(arguments.run(arguments))
        print(end="", flush=True)  # what cannot be written is told here
        return code
    except Lab3Error as error:
        return _fail(arguments, error)
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    except OSError as error:
        return _fail(arguments, refused(error))
    finally:
        _drop_unwritten()


def _fail(arguments: argparse.Namespace, error: Lab3Error) -> int:
    with contextlib.suppress(OSError):  # it may be the output itself that cannot be written
        if arguments.json:
            fault = {"what": error.what, "why": error.why, "todo": error.todo, "details": str(error)}
            _print_json({"error": fault, "exit_code": error.exit_code})
    with contextlib.suppress(OSError):
        print(f"error: {error}", file=sys.stderr)
    return error.exit_code


def _drop_unwritten() -> None:
    """Python tries once more at its end to write what is left of the output, and exits 120 if it cannot."""
    for stream in (sys.stdout, sys.stderr):
        try:
            print(end="", file=stream, flush=True)
        except OSError:
            with contextlib.suppress(OSError), Path(os.devnull).open("w") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())


# --- commands ------------------------------------------------------------------------------------------------------


def _run(arguments: argparse.Namespace) -> int:
    from lab3.checks import exit_code, judge
    from lab3.lab import run_lab
    from lab3.report import build_report, write_report
    from lab3.serve_flags import check_gpu

    check_gpu(arguments.engine)
    evidence = run_lab(arguments.model, arguments.out, engine=arguments.engine, progress=_progress(arguments))
    verdicts = judge(evidence)
    report = build_report(evidence, verdicts)
    write_report(report, arguments.out / "report.json")
    _write_page(report, arguments.out)
    if arguments.json:
        _print_json(report)
    else:
        from lab3.report.text import print_report

        print_report(report, arguments.out / "report.json")
        print(f"page: {arguments.out / 'report.html'}", flush=True)
    return exit_code(verdicts)


def _write_page(report: dict[str, Any], folder: Path) -> None:
    from lab3.report.html_page import PAGE, write_page
    from lab3.report.json_report import plain
    from lab3.report.stored import as_stored

    write_page(as_stored(plain(report), folder / "report.json"), folder / PAGE)


def _report(arguments: argparse.Namespace) -> int:
    from lab3.report.command import run

    return run(arguments, say=lambda text: print(text, flush=True), tell=_print_json)


def _quantize(arguments: argparse.Namespace) -> int:
    from lab3.models import resolve
    from lab3.quantize import check_target, quantize

    check_target(arguments.out, overwrite=arguments.overwrite)  # finding the model may take long
    progress = _progress(arguments)
    result = quantize(
        resolve(arguments.model, progress=progress),
        arguments.out,
        samples=arguments.samples,
        seqlen=arguments.seqlen,
        bits=arguments.bits,
        group_size=arguments.group_size,
        search_scale=arguments.search_scale,
        batch_size=arguments.batch_size,
        device=arguments.device,
        dtype=arguments.dtype,
        calibration=arguments.calibration,
        overwrite=arguments.overwrite,
        progress=progress,
    )
    return _show(arguments, result.to_dict())


def _serve(arguments: argparse.Namespace) -> int:
    from lab3.models import resolve
    from lab3.serve import ApiServer
    from lab3.serve_flags import check_gpu

    if arguments.log is not None:
        check_beside(arguments.log, option="--log")
        if arguments.log.exists():
            raise UsageError(f"{arguments.log} exists", todo="give --log another name, or remove it")
    check_gpu(arguments.engine)
    progress = _progress(arguments)
    server = ApiServer(
        resolve(arguments.model, progress=progress),
        kv_bits=arguments.kv_bits,
        cache_ratio=arguments.cache_ratio,
        port=arguments.port or None,
        host=arguments.host,
        engine=arguments.engine,
        tool_call_parser=None if arguments.tool_call_parser == "none" else arguments.tool_call_parser,
        model_name=arguments.model_name,
        log_path=arguments.log,
        progress=progress,
    )
    with _terminated_as_interrupted() as ended, server:
        facts = {"base_url": server.base_url, "model": server.model_name, "engine": server.engine, "pid": server.pid}
        _show(arguments, facts | {"command": server.shell_command, "log": str(server.log_path)})
        if not arguments.json:
            print("serving; Ctrl-C stops everything", flush=True)
        while not ended():
            server.check_running()
            time.sleep(0.5)
    raise KeyboardInterrupt


def _chat(arguments: argparse.Namespace) -> int:
    from lab3.chat import chat

    with _somebody_to_ask(arguments) as base_url:
        result = chat(
            arguments.text,
            base_url=base_url,
            api_key=arguments.api_key,
            stream=arguments.stream,
            temperature=arguments.temperature,
            seed=arguments.seed,
            max_tokens=arguments.max_tokens,
        )
    if arguments.json:
        return _show(arguments, result.to_dict())
    print(result.text)
    return 0


def _funcall(arguments: argparse.Namespace) -> int:
    from lab3.funcall import run_tools

    with _somebody_to_ask(arguments) as base_url:
        result = run_tools(
            arguments.text,
            base_url=base_url,
            api_key=arguments.api_key,
            stream=arguments.stream,
            tool_choice=arguments.tool_choice.split(",") if "," in arguments.tool_choice else arguments.tool_choice,
            style=arguments.style,
            temperature=arguments.temperature,
            seed=arguments.seed,
            max_tokens=arguments.max_tokens,
        )
    if arguments.json:
        _show(arguments, result.to_dict())
    else:
        for call in result.calls:
            print(f"{call.name}({call.arguments_json}) → {call.result if call.outcome == 'ok' else call.error}")
        print(result.answer or f"(no answer: {result.outcome})")
    return 0 if result.outcome == "answered" else 1


def _grade(arguments: argparse.Namespace) -> int:
    from lab3.grading.batch import RESULT, Plan, grade_batch
    from lab3.grading.grade import chosen
    from lab3.grading.results import exit_code, in_short

    plan = Plan(
        model=arguments.model or "embedded",
        source_known=arguments.model is not None,
        engine=arguments.engine,
        checks=chosen(arguments.checks.split(",") if arguments.checks else ()),
        timeout_s=arguments.timeout,
        model_roots=tuple(arguments.model_root),
        workers=arguments.workers,
    )
    progress = _progress(arguments)
    elsewhere = None
    if arguments.ray:
        from lab3.grading.ray_batch import ray_grader

        elsewhere = ray_grader(plan, arguments.out, address=arguments.ray, progress=progress)
    graded = grade_batch(arguments.submissions, arguments.out, plan=plan, progress=progress, grade_all=elsewhere)
    if arguments.json:
        whole = [json.loads((arguments.out / each.name / RESULT).read_text(encoding="utf-8")) for each in graded]
        _print_json({"out": str(arguments.out), "submissions": whole})
    else:
        width = max(len(each.name) for each in graded)
        for each in graded:
            why = f"  {each.reasons[0][:100]}" if each.reasons else ""
            print(f"{each.name:<{width}}  {each.score:>3}/{each.max_score}  {in_short(each)}  {each.status}{why}")
        print(f"results: {arguments.out / 'summary.html'}", flush=True)
    return exit_code(graded)


def _grade_reports(arguments: argparse.Namespace) -> int:
    from lab3.reports.command import run

    with _terminated_as_interrupted():
        return run(arguments, _progress(arguments), say=lambda text: print(text, flush=True), tell=_print_json)


def _web(arguments: argparse.Namespace) -> int:
    from lab3.web.command import run

    with _terminated_as_interrupted() as ended:
        run(arguments, _progress(arguments), ended=ended, say=lambda text: print(text, flush=True), tell=_print_json)
    raise KeyboardInterrupt


def _vram_measure(arguments: argparse.Namespace) -> int:
    import psutil

    from lab3 import vram

    if arguments.pid is not None and not psutil.pid_exists(arguments.pid):
        raise UsageError(f"there is no process {arguments.pid}", todo="give the pid of a server that runs")
    reading = vram.read(arguments.pid, device=arguments.device)
    return _show(arguments, reading.to_dict())


def _vram_predict(arguments: argparse.Namespace) -> int:
    from lab3.vram_predict import predict

    prediction = predict(
        total_mib=arguments.total_mib,
        ratio=arguments.ratio,
        kv_bits=arguments.kv_bits,
        engine=arguments.engine,
        weights_mib=arguments.weights_mib,
        model=arguments.model,
        foreign_mib=arguments.foreign_mib,
        lmdeploy=arguments.lmdeploy,
    )
    return _show(arguments, prediction.to_dict())


def _vram_fit(arguments: argparse.Namespace) -> int:
    from lab3.vram_predict import fit, parse_reading

    readings = [parse_reading(text) for text in arguments.readings]
    return _show(arguments, fit(readings, engine=arguments.engine).to_dict())


def _doctor(arguments: argparse.Namespace) -> int:
    from lab3.doctor import examine

    findings = examine()
    if arguments.json:
        return _show(arguments, {"findings": [finding.to_dict() for finding in findings]})
    from lab3.report.text import print_findings

    print_findings(findings)
    return 0


# --- arguments -----------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lab3",
        description="The LMDeploy quantization lab (W4A16, int4 KV cache, chat, function calls), done and judged.",
    )
    parser.add_argument("--version", action="version", version=f"lab3 {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = _command(commands, "run", _run, "do the whole lab and judge it")
    run.add_argument("--model", default="embedded", help=MODEL_HELP)
    run.add_argument("--out", type=Path, default=Path("lab3-out"), help="folder for the results (%(default)s)")
    _engine_argument(run)

    told = _command(commands, "report", _report, "a run as one page, two runs compared, or the homework in Markdown")
    add_page_arguments(told)

    quantize = _command(commands, "quantize", _quantize, "quantize a model to W4A16 with LMDeploy's AWQ")
    quantize.add_argument("model", help=MODEL_HELP)
    quantize.add_argument("--out", type=Path, required=True, help="the new folder")
    quantize.add_argument("--samples", type=_positive, help="calibration samples (GPU: 128; CPU: lab3's own text once)")
    quantize.add_argument("--seqlen", type=_positive, help="tokens in a sample (GPU: 2048; CPU: 512)")
    quantize.add_argument("--bits", type=int, default=4, help="bits of a weight; LMDeploy's AWQ has 4")
    quantize.add_argument("--group-size", type=int, default=128, help="weights that share a scale (%(default)s)")
    quantize.add_argument("--search-scale", action="store_true", help="search AWQ's scale ratio: slower, often better")
    quantize.add_argument(
        "--batch-size", type=_positive, help="calibration samples at once (up to 16, as memory allows)"
    )
    quantize.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (%(default)s)")
    quantize.add_argument("--dtype", default="auto", choices=("auto", "float16", "bfloat16"))
    quantize.add_argument("--calibration", type=Path, help="a .txt or .jsonl file in place of lab3's own text")
    quantize.add_argument("--overwrite", action="store_true", help="replace the folder if it exists")

    serve = _command(commands, "serve", _serve, "serve a model with LMDeploy until Ctrl-C")
    serve.add_argument("model", help=MODEL_HELP)
    serve.add_argument("--kv-bits", type=int, default=16, choices=(16, 8, 4), help="bits of the KV cache (%(default)s)")
    serve.add_argument("--cache-ratio", type=float, default=0.8, help="its share of the free memory (%(default)s)")
    serve.add_argument("--port", type=int, default=23333, help="0 takes a free one (%(default)s)")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    serve.add_argument("--model-name", help="name in /v1/models (the folder's name)")
    parser_help = "LMDeploy's parser of tool calls, or none (%(default)s)"
    serve.add_argument("--tool-call-parser", default="internlm", help=parser_help)
    serve.add_argument("--log", type=Path, metavar="FILE", help="keep the server's log there (removed with the server)")
    _engine_argument(serve)

    web = _command(commands, "web", _web, "talk to a model in the browser: chat, tools, before and after, memory")
    add_web_arguments(web, model_help=MODEL_HELP)
    _engine_argument(web)

    for name, function, text in (
        ("chat", _chat, "say something to a model"),
        ("funcall", _funcall, "ask a question that needs add or mul, and run the calls"),
    ):
        command = _command(commands, name, function, text)
        command.add_argument("text", metavar="TEXT", help="what to say")
        _ask_arguments(command)
        if name == "funcall":
            command.add_argument(
                "--tool-choice",
                default="auto",
                help="auto, required, none, or one for each round with commas (%(default)s)",
            )
            command.add_argument("--style", default="tool", choices=("tool", "environment"), help="role of results")

    grade = _command(commands, "grade", _grade, "grade submissions: run their scripts in a sandbox, watch the wire")
    grade.add_argument("submissions", nargs="+", type=Path, metavar="DIR", help="a submission's folder")
    grade.add_argument("--out", type=Path, required=True, metavar="RESULTS", help="folder for the results")
    grade.add_argument("--model", help=f"what was quantized, served where no model was handed in: {MODEL_HELP}")
    grade.add_argument("--model-root", action="append", default=[], type=Path, metavar="DIR", help=_ROOT_HELP)
    grade.add_argument("--checks", metavar="IDS", help="beginnings of checks' ids, such as chat,tools,scripts (all)")
    grade.add_argument("--timeout", type=float, default=180.0, metavar="S", help="of one script's run (%(default)s)")
    grade.add_argument("--workers", type=_positive, help="submissions at once (16 with a GPU, else 3)")
    grade.add_argument("--ray", metavar="ADDRESS", help="spread over a Ray cluster: auto, local, HOST:PORT or ray://…")
    _engine_argument(grade)

    reports = _command(commands, "grade-reports", _grade_reports, "grade reports: what they show, and can it be true")
    add_report_arguments(reports)

    memory = commands.add_parser("vram", help="device memory").add_subparsers(required=True, metavar="COMMAND")
    measure = _command(memory, "measure", _vram_measure, "read the device's memory once")
    measure.add_argument("--pid", type=int, help="attribute to this process and its children")
    measure.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or a UUID (%(default)s)")

    foretell = _command(memory, "predict", _vram_predict, "what a server will hold on a GPU, before it is started")
    foretell.add_argument("--total-mib", type=float, required=True, help="the card, as nvidia-smi shows it")
    size = foretell.add_mutually_exclusive_group(required=True)
    size.add_argument("--weights-mib", type=float, help="the weights on the GPU")
    size.add_argument("--model", help=f"gives the weights and what a token takes; config.json is enough: {MODEL_HELP}")
    foretell.add_argument("--foreign-mib", type=float, default=0.0, help="what others hold of it (%(default)s)")
    foretell.add_argument("--ratio", type=float, required=True, help="--cache-max-entry-count")
    foretell.add_argument("--kv-bits", type=int, required=True, choices=(16, 8, 4), help="bits of the KV cache")
    foretell.add_argument("--engine", required=True, choices=("turbomind", "pytorch"), help="LMDeploy's engine")
    foretell.add_argument("--lmdeploy", metavar="VERSION", help="picks the constants (the installed version)")

    solve = _command(memory, "fit", _vram_fit, "what LMDeploy takes for itself, from readings of two cache ratios")
    solve.add_argument("readings", nargs="+", metavar="TOTAL,WEIGHTS,RATIO,USED", help="a server's reading, in MiB")
    solve.add_argument("--engine", default="turbomind", choices=("turbomind", "pytorch"), help="(%(default)s)")

    _command(commands, "doctor", _doctor, "what this machine can do, and what to type about each problem")
    return parser


def _command(
    commands: Any, name: str, function: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.add_argument("--quiet", action="store_true", help="no progress on standard error")
    command.set_defaults(run=function)
    return command


def _engine_argument(command: argparse.ArgumentParser) -> None:
    engines = ("auto", "turbomind", "pytorch", "cpu")
    command.add_argument("--engine", default="auto", choices=engines, help="LMDeploy's engine (%(default)s)")


def _ask_arguments(command: argparse.ArgumentParser) -> None:
    where = command.add_mutually_exclusive_group(required=True)
    where.add_argument("--base-url", help="a running server, for instance http://127.0.0.1:23333/v1")
    where.add_argument("--model", help=f"start a server for this: {MODEL_HELP}")
    command.add_argument("--api-key", default="none", help="for a server that wants one")
    command.add_argument("--kv-bits", type=int, default=16, choices=(16, 8, 4), help="with --model (%(default)s)")
    command.add_argument("--stream", action="store_true", help="stream the answer: gives the time to first token")
    command.add_argument("--temperature", type=float, help="0 is greedy (default: the server's)")
    command.add_argument("--seed", type=int)
    command.add_argument("--max-tokens", type=_positive, default=512, help="(%(default)s)")


def _positive(text: str) -> int:
    value = int(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not more than 0")
    return value


# --- output --------------------------------------------------------------------------------------------------------


def _show(arguments: argparse.Namespace, facts: dict[str, Any]) -> int:
    if arguments.json:
        _print_json(facts)
    else:
        width = max(len(name) for name in facts)
        for name, value in facts.items():
            print(f"{name:<{width}}  {_plainly(value)}", flush=True)
    return 0


def _plainly(value: Any) -> str:
    """For a person: no more digits than say something, no Python."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if 0 < abs(value) < _FEW_DIGITS else f"{value:.1f}"
    if isinstance(value, list | tuple):
        if len(value) > _MOST_SHOWN and all(isinstance(each, int | float) for each in value):
            return f"{_plainly(min(value))} to {_plainly(max(value))}, {len(value)} values (all of them with --json)"
        return "; ".join(map(_plainly, value)) or "-"
    return str(value)


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2, default=str), flush=True)


def _progress(arguments: argparse.Namespace) -> Progress:
    if arguments.quiet:
        from lab3.progress import silent

        return silent
    from lab3.report.text import TerminalProgress

    return TerminalProgress()


def _somebody_to_ask(arguments: argparse.Namespace) -> Any:
    """A context that gives the base URL: the one that was named, or that of a server started for the occasion."""
    import contextlib

    if arguments.base_url is not None:
        return contextlib.nullcontext(arguments.base_url)
    return _own_server(arguments)


def _own_server(arguments: argparse.Namespace) -> Any:
    import contextlib

    from lab3.models import resolve
    from lab3.serve import ApiServer

    @contextlib.contextmanager
    def serving() -> Any:
        progress = _progress(arguments)
        with ApiServer(
            resolve(arguments.model, progress=progress), kv_bits=arguments.kv_bits, progress=progress
        ) as server:
            yield server.base_url

    return serving()


def _terminated_as_interrupted() -> Any:
    """SIGTERM and SIGINT end the foreground server with everything it started, as Ctrl-C does.

    SIGINT too: a process that a shell put in the background starts with it ignored. Gives a function that says whether
    one has come: KeyboardInterrupt is lost if Python happens to run a `__del__` then.
    """
    import contextlib
    import signal

    @contextlib.contextmanager
    def handled() -> Any:
        told: list[int] = []

        def interrupt(number: int, _: Any) -> None:
            told.append(number)
            raise KeyboardInterrupt

        before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield lambda: bool(told)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    return handled()
