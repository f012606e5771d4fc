"""Quantization on a GPU: `lab3 quantize` beside `lmdeploy lite auto_awq` with the tutorial's flags, run in turn.

python -m bench.quantize_gpu --shape 1.8b --rounds 2        (random weights; both read the same calibration text)
python -m bench.quantize_gpu --shape 7b --rounds 1

Whole commands are timed, imports and saving included. `lab3 quantize` is timed with its perplexities, as it comes, and
without. Then the packed weights are compared: LMDeploy's own command and lab3 must choose the same scales.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_SAMPLES, _SEQLEN = 128, 2048
_SHAPES = {
    "1.8b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 16},
    "7b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=sorted(_SHAPES), default="1.8b", help="InternLM2.5's (%(default)s)")
    parser.add_argument("--model", type=Path, help="quantize this folder instead of random weights")
    parser.add_argument("--rounds", type=int, default=2, help="(%(default)s)")
    parser.add_argument("--samples", type=int, default=_SAMPLES, help="(%(default)s)")
    parser.add_argument("--work", type=Path, help="folder to work in (a temporary one)")
    parser.add_argument("--child", nargs=3, metavar=("MODEL", "OUT", "SAMPLES"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child:
        return _lmdeploy(Path(options.child[0]), options.child[1], int(options.child[2]))

    work = options.work or Path(tempfile.mkdtemp(prefix="lab3-bench-"))
    model = options.model or _random_model(options.shape, work)
    python, samples = sys.executable, options.samples
    size = ["--samples", str(samples), "--seqlen", str(_SEQLEN), "--device", "cuda", "--overwrite"]
    commands = {
        "lmdeploy": [python, "-m", "bench.quantize_gpu", "--child", str(model), str(work / "lmdeploy"), str(samples)],
        "lab3": [python, "-m", "lab3", "quantize", str(model), "--out", str(work / "lab3"), *size],
        "lab3_without_perplexity": [python, "-c", _WITHOUT_PERPLEXITY, str(model), str(work / "plain"), str(samples)],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(options.rounds):
        for name, command in commands.items():
            began = time.monotonic()
            log = (work / f"{name}.{turn}.log").open("wb")
            subprocess.run(command, check=True, stdout=log, stderr=log)
            seconds[name].append(time.monotonic() - began)
            print(f"{name}: {seconds[name][-1]:.1f} s", file=sys.stderr, flush=True)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    figures: dict[str, Any] = {
        "shape": options.shape,
        "samples": samples,
        "seqlen": _SEQLEN,
        "seconds": {name: [round(each, 1) for each in times] for name, times in seconds.items()},
        "median_s": {name: round(each, 1) for name, each in median.items()},
        "ratio": {name: round(median[name] / median["lmdeploy"], 3) for name in commands if name != "lmdeploy"},
        "packed_as_lmdeploy": same_weights(work / "lab3", work / "lmdeploy"),
    }
    print(json.dumps(figures))
    return 0


_WITHOUT_PERPLEXITY = """
import sys
from pathlib import Path
from lab3.quantize import quantize
model, out, samples = sys.argv[1:]
quantize(Path(model), Path(out), samples=int(samples), seqlen=2048, device="cuda", quality=False, overwrite=True)
"""


def same_weights(one: Path, other: Path) -> dict[str, float]:
    """Of two W4A16 folders, the share of equal 4-bit values and of equal scales, and how far scales differ at most."""
    import torch
    from safetensors.torch import load_file

    from lab3.models import weight_files
    from lab3.perplexity import unpack_awq

    equal, values, equal_scales, scales, apart = 0, 0, 0, 0, 0.0
    ours, theirs = (
        {name: tensor for file in weight_files(folder) for name, tensor in load_file(file).items()}
        for folder in (one, other)
    )
    if ours.keys() != theirs.keys():
        raise SystemExit(f"the folders hold other tensors: {sorted(ours.keys() ^ theirs.keys())[:4]}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name, tensor in ours.items():
        a, b = tensor.to(device), theirs[name].to(device)
        if name.endswith("qweight"):
            equal += int((unpack_awq(a) == unpack_awq(b)).sum())
            values += 8 * a.numel()
        elif name.endswith("scales"):
            equal_scales += int((a == b).sum())
            scales += a.numel()
            apart = max(apart, float(((a.float() - b.float()).abs() / b.float().abs()).max()))
    return {"values": equal / values, "scales": equal_scales / scales, "scales_apart_at_most": apart}


def _random_model(shape: str, work: Path) -> Path:
    from lab3.models import loadable
    from tests.internlm2_folder import sentencepiece_model, texts, write

    folder = work / f"internlm2_5-{shape}-random"
    if not folder.exists():
        facts = {**_SHAPES[shape], "num_key_value_heads": 8, "max_position_embeddings": 32768}
        write(folder, sentencepiece_model(texts()), shards=4, device="cuda", **facts)
    return loadable(folder)


def _lmdeploy(model: Path, out: str, samples: int) -> int:
    """LMDeploy's command, unchanged but for its calibration text, which it would fetch from a hub."""
    from transformers import AutoTokenizer

    from lab3 import calibration

    sequences = calibration.tokenize(calibration.bundled_calibration(), AutoTokenizer.from_pretrained(model))
    blocks = calibration.pack(sequences, rows=samples, seqlen=_SEQLEN)
    with calibration.substituted_loader(blocks):
        from lmdeploy.cli.entrypoint import run

        flags = ["--calib-samples", str(samples), "--calib-seqlen", str(_SEQLEN), "--batch-size", "1"]
        flags += ["--calib-dataset", calibration.ACCEPTED_DATASET, "--w-bits", "4", "--w-group-size", "128"]
        flags += ["--dtype", "float16", "--work-dir", out]
        sys.argv = ["lmdeploy", "lite", "auto_awq", str(model), *flags]
        run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
