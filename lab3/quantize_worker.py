"""The child process of `lab3.quantize`: runs LMDeploy's AWQ and reports over its standard output, one JSON a line."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from lab3 import calibration
from lab3.awq_cpu import cpu_precision, search_restores_weights
from lab3.awq_speed import loaded_already, only_what_is_used, packed_at_once, resident, weights_fit
from lab3.errors import InfraError, Lab3Error
from lab3.garbage import collect_rarely
from lab3.heap import keep_freed_memory
from lab3.models import read_config
from lab3.perplexity import load_for_evaluation, measure
from lab3.progress import Progress

if TYPE_CHECKING:
    from lab3.kv_quality import KVQuality

_MOST_BATCH = 16


def main(argv: list[str]) -> int:
    """Do the job (a JSON object) given as the only argument."""
    job = json.loads(argv[0])
    collect_rarely()
    keep_freed_memory()
    _end_with_parent(Path(job["out"]).parent)
    events = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # what LMDeploy and its libraries print goes to the log, which is our standard error

    def send(event: dict[str, Any]) -> None:
        events.write(json.dumps(event) + "\n")

    def progress(message: str, *, done: float | None = None, total: float | None = None) -> None:
        send({"message": message, "done": done, "total": total})

    try:
        send({"result": _work(job, progress)})
    except Lab3Error as error:
        send({"error": {"kind": type(error).__name__, "what": error.what, "why": error.why, "todo": error.todo}})
        return 1
    return 0


def _end_with_parent(scratch: Path) -> None:
    """When the parent dies, even by SIGKILL, its end of our standard input closes: clean up and go."""

    def watch() -> None:
        while os.read(0, 1):  # not sys.stdin.read(): Python aborts at its end while a thread has sys.stdin's lock
            pass
        shutil.rmtree(scratch, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(job: dict[str, Any], progress: Progress) -> dict[str, Any]:
    progress("loading LMDeploy")
    import torch
    from transformers import AutoTokenizer

    model, out = Path(job["model"]), Path(job["out"])
    device = _pick_device(job["device"])
    tokenizer = AutoTokenizer.from_pretrained(model)
    notices: list[str] = []

    source = job["calibration"]
    texts = calibration.read_samples(Path(source)) if source else calibration.bundled_calibration()
    sequences = calibration.tokenize(texts, tokenizer)
    distinct = sum(len(ids) for ids in sequences)
    samples, seqlen = calibration.amount(distinct, device=device, samples=job["samples"], seqlen=job["seqlen"])
    blocks = calibration.pack(sequences, rows=samples, seqlen=seqlen)
    if blocks.rounds > 1:
        notices.append(
            f"the calibration text has {blocks.distinct_tokens} tokens and {samples} x {seqlen} were asked for: "
            f"it was read {blocks.rounds} times, in another order each time"
        )

    batch = job["batch_size"] or min(samples, _batch_size(model, seqlen, device))
    stays = device == "cpu" or weights_fit(
        model,
        tokens=samples * seqlen,
        batch_bytes=batch * _sample_bytes(model, seqlen),
        free_bytes=_free_bytes(device),
    )
    heldout = calibration.tokenize(calibration.bundled_heldout(), tokenizer) if job["quality"] else []
    if not stays:
        notices.append("the model does not fit on the GPU: quantized layer by layer, and no perplexity is measured")
        heldout = []
    network, before = None, None
    if stays:
        progress("loading the model")
        network = load_for_evaluation(model, device=device)
        before = measure(network, heldout, progress=_named(progress, "before")) if heldout else None
        if device != "cpu" and job["dtype"] == "bfloat16":
            network = type(network).from_pretrained(model, dtype=torch.bfloat16).to(device).eval()
    with calibration.substituted_loader(blocks):
        _quantize(job, network, device=device, samples=samples, seqlen=seqlen, batch=batch, progress=progress)
    del network
    if device != "cpu":
        torch.cuda.empty_cache()
    after, cached = _quality(out, heldout, device, progress) if heldout else (None, None)
    return {
        "samples": samples,
        "seqlen": seqlen,
        "device": device,
        "perplexity_before": before,
        "perplexity_after": after,
        "perplexity_kv_int4": cached.perplexity if cached else None,
        "kv_int4_key_errors": cached.key_errors if cached else (),
        "notices": notices,
    }


def _quantize(
    job: dict[str, Any], network: Any, *, device: str, samples: int, seqlen: int, batch: int, progress: Progress
) -> None:
    """LMDeploy's AWQ on `network`, which is spoilt; None: on the folder, a layer on the GPU at a time."""
    progress("calibrating")
    with contextlib.ExitStack() as changes:
        changes.enter_context(_stdout_as_progress(progress))
        changes.enter_context(packed_at_once())
        if not job["search_scale"]:
            changes.enter_context(only_what_is_used())
        elif device == "cpu":
            changes.enter_context(search_restores_weights())
        if network is not None:
            changes.enter_context(loaded_already(network))
            changes.enter_context(cpu_precision(job["dtype"]) if device == "cpu" else resident())
        from lmdeploy.lite.apis.auto_awq import auto_awq

        auto_awq(
            job["model"],
            work_dir=job["out"],
            calib_dataset=calibration.ACCEPTED_DATASET,
            calib_samples=samples,
            calib_seqlen=seqlen,
            batch_size=batch,
            w_bits=job["bits"],
            w_group_size=job["group_size"],
            search_scale=job["search_scale"],
            device=device,
            dtype="float16" if job["dtype"] == "auto" else job["dtype"],
        )


def _quality(model: Path, heldout: list[list[int]], device: str, progress: Progress) -> tuple[float, KVQuality]:
    """The perplexity, and the quality with an int4 KV cache."""
    from lab3.kv_quality import kv_quality

    network = load_for_evaluation(model, device=device)
    after = measure(network, heldout, progress=_named(progress, "after"))
    return after, kv_quality(network, heldout, bits=4, progress=_named(progress, "with an int4 KV cache"))


def _pick_device(asked: str) -> str:
    import torch

    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked != "cpu" and not torch.cuda.is_available():
        raise InfraError(f"no GPU for device {asked}", why="torch finds no CUDA device", todo="use the device cpu")
    return asked


def _batch_size(model: Path, seqlen: int, device: str) -> int:
    """Samples at once: as many as pay off and, on a GPU, as fit into a quarter of its free memory."""
    if device == "cpu":
        return _MOST_BATCH
    return max(1, min(_MOST_BATCH, _free_bytes(device) // 4 // _sample_bytes(model, seqlen)))


def _sample_bytes(model: Path, seqlen: int) -> int:
    """What a decoder layer at work on one sample holds: some six tensors of the size of its widest one, in 16 bits."""
    return 6 * 2 * seqlen * read_config(model).intermediate_size


def _free_bytes(device: str) -> int:
    import torch

    return int(torch.cuda.mem_get_info(torch.device(device))[0])


def _named(progress: Progress, when: str) -> Progress:
    def named(message: str, *, done: float | None = None, total: float | None = None) -> None:
        progress(f"{message} {when}", done=done, total=total)

    return named


@contextlib.contextmanager
def _stdout_as_progress(progress: Progress) -> Iterator[None]:
    """LMDeploy prints a line for every layer it has calibrated, smoothed and packed: count them."""
    stream = _Counted(sys.stdout, progress)
    with contextlib.redirect_stdout(stream):
        yield


class _Counted(io.TextIOBase):
    """Passes text on to the log, and turns LMDeploy's lines into progress."""

    _STEPS = (
        ("calibrating", re.compile(r"samples: \d+, max gpu memory")),
        ("smoothing weights", re.compile(r"smooth weight done")),
        ("packing weights", re.compile(r"weight (packed|skipped)\.")),
    )

    def __init__(self, log: TextIO, progress: Progress) -> None:
        self._log = log
        self._progress = progress
        self._layers = 0
        self._counts = dict.fromkeys((name for name, _ in self._STEPS), 0)

    def write(self, text: str) -> int:
        self._log.write(text)
        self._layers += len(re.findall(r"layers\.\d+ to CPU", text))
        for name, pattern in self._STEPS:
            if pattern.search(text):
                self._counts[name] += 1
                # A decoder layer has several linear layers: only whole layers can be counted against a total.
                total = None if name == "packing weights" else self._layers or None
                self._progress(name, done=self._counts[name], total=total)
        return len(text)

    def flush(self) -> None:
        self._log.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
