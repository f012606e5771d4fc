"""Text for calibration and for measuring quality, which needs no hub: bundled with lab3, or a file of the user's.

LMDeploy 0.18 takes its calibration sets from hubs only. The bundled text (`data/calibration.jsonl`) is lab3's own:
English and Chinese conversations, arithmetic, code and calls of `add` and `mul`, read through the model's own chat
template, so that the activations AWQ sees are those of the lab. `data/heldout.jsonl` shares no text with it.
"""

from __future__ import annotations

import importlib
import inspect
import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from lab3.errors import InfraError, UsageError

# A name that LMDeploy's `calibrate` accepts; `substituted_loader` answers in its place.
ACCEPTED_DATASET = "wikitext2"
_PAIRS = (("prompt", "response"), ("prompt", "completion"), ("instruction", "output"), ("question", "answer"))
_CPU_SEQLEN = 512
_TUTORIAL_SAMPLES, _TUTORIAL_SEQLEN = 128, 2048
_SHAPES = '{"text": ...}, {"messages": [...]} or {"prompt": ..., "response": ...}'


@dataclass(frozen=True)
class Sample:
    """One text: either plain `text`, or chat `messages` (with the `tools` they may call)."""

    text: str = ""
    messages: list[dict[str, Any]] = field(default_factory=list)
    tools: list[dict[str, Any]] | None = None


def bundled_calibration() -> list[Sample]:
    """The conversations lab3 calibrates with when it is given no file."""
    return _bundled("calibration.jsonl")


def bundled_heldout() -> list[Sample]:
    """The conversations lab3 measures perplexity on; none of them is used to calibrate."""
    return _bundled("heldout.jsonl")


def read_samples(path: Path) -> list[Sample]:
    """Samples of a .txt file (one sample) or a .jsonl file (one a line).

    A line of a .jsonl file has the fields text | messages (and tools) | prompt and response | instruction and output |
    question and answer. Raises UsageError for a file that is missing, empty or malformed, naming the line.
    """
    if path.suffix not in (".txt", ".jsonl"):
        raise UsageError(f"{path} is no calibration text", todo=f"give a .txt file, or a .jsonl file of {_SHAPES}")
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the calibration text {path}: {error}", todo="give a UTF-8 text file") from error
    if not content.strip():
        raise UsageError(f"the calibration text {path} is empty", todo="give at least a few pages of text")
    if path.suffix == ".txt":
        return [Sample(text=content)]
    return [_parse(line, f"{path}:{number}") for number, line in enumerate(content.splitlines(), 1) if line.strip()]


def tokenize(samples: Sequence[Sample], tokenizer: Any) -> list[list[int]]:
    """The token ids of each sample, conversations rendered by the tokenizer's chat template if it has one."""
    return [list(_encode(sample, tokenizer)) for sample in samples]


def amount(distinct: int, *, device: str, samples: int | None = None, seqlen: int | None = None) -> tuple[int, int]:
    """How many samples of how many tokens calibrate: what is given, else the lab's 128 x 2048, on a CPU the text once.

    `distinct` is how many tokens the text has.
    """
    seqlen = seqlen or (min(_CPU_SEQLEN, max(distinct, 8)) if device == "cpu" else _TUTORIAL_SEQLEN)
    return samples or (max(distinct // seqlen, 1) if device == "cpu" else _TUTORIAL_SAMPLES), seqlen


@dataclass(frozen=True)
class Blocks:
    """Calibration data: `rows` of equally many ids, cut from `distinct_tokens` of text, read `rounds` times."""

    rows: list[list[int]]
    distinct_tokens: int
    rounds: int


def pack(sequences: Sequence[Sequence[int]], *, rows: int, seqlen: int) -> Blocks:
    """`rows` blocks of exactly `seqlen` ids, cut from the sequences laid end to end.

    When the text is too short for that it is read again in another order, so that texts meet other neighbours and
    other positions. Raises UsageError when it does not fill a single block.
    """
    distinct = sum(len(ids) for ids in sequences)
    if distinct < seqlen:
        raise UsageError(
            f"the calibration text has {distinct} tokens, and one sample takes {seqlen}",
            todo=f"give a longer text, or a sample length of at most {distinct} tokens",
        )
    shuffler = random.Random(0)
    order, stream, rounds = list(sequences), list[int](), 0
    while len(stream) < rows * seqlen:
        for ids in order:
            stream.extend(ids)
        shuffler.shuffle(order)
        rounds += 1
    return Blocks([stream[start : start + seqlen] for start in range(0, rows * seqlen, seqlen)], distinct, rounds)


@contextmanager
def substituted_loader(blocks: Blocks) -> Iterator[None]:
    """LMDeploy's `calibrate` reads `blocks` instead of a data set from a hub, while the context lasts.

    Raises InfraError when this LMDeploy has no loader of the form lab3 knows (0.18's).
    """
    module = importlib.import_module("lmdeploy.lite.apis.calibrate")
    original = getattr(module, "get_calib_loaders", None)
    known = ["name", "tokenizer", "nsamples", "seed", "seqlen"]
    if original is None or list(inspect.signature(original).parameters) != known:
        raise InfraError(
            "this LMDeploy loads its calibration data in a way lab3 does not know",
            why="lab3 was written for LMDeploy 0.18",
            todo="install the LMDeploy that lab3 asks for: uv pip install 'lmdeploy>=0.18,<0.19'",
        )

    def loader(name: str, tokenizer: Any, nsamples: int = 128, seed: int = 0, seqlen: int = 2048) -> list[Any]:
        import torch

        return [torch.tensor([row], dtype=torch.int64) for row in blocks.rows]

    module.get_calib_loaders = loader  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.get_calib_loaders = original  # type: ignore[attr-defined]


def _bundled(name: str) -> list[Sample]:
    lines = files("lab3").joinpath("data", name).read_text(encoding="utf-8").splitlines()
    return [_parse(line, name) for line in lines]


def _parse(line: str, where: str) -> Sample:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where} is not JSON: {error}", todo=f"write one object a line: {_SHAPES}") from error
    if isinstance(record, dict):
        if isinstance(record.get("messages"), list) and all(isinstance(one, dict) for one in record["messages"]):
            return Sample(messages=record["messages"], tools=record.get("tools"))
        if isinstance(record.get("text"), str):
            return Sample(text=record["text"])
        for question, answer in _PAIRS:
            if isinstance(record.get(question), str) and isinstance(record.get(answer), str):
                turns = (("user", record[question]), ("assistant", record[answer]))
                return Sample(messages=[{"role": role, "content": content} for role, content in turns])
    raise UsageError(f"{where} has no text that lab3 can read", todo=f"write one object a line: {_SHAPES}")


def _encode(sample: Sample, tokenizer: Any) -> list[int]:
    from jinja2 import TemplateError

    if not sample.messages:
        return list(tokenizer(sample.text, verbose=False).input_ids)
    if getattr(tokenizer, "chat_template", None):
        try:
            text = tokenizer.apply_chat_template(sample.messages, tools=sample.tools, tokenize=False)
            # The template writes the special tokens itself.
            return list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
        except TemplateError:  # a template may refuse roles it does not know, such as "tool"
            pass
    return list(tokenizer("\n".join(str(one.get("content") or "") for one in sample.messages), verbose=False).input_ids)
