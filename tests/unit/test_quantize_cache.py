"""A quantized folder is found again by what it was made of, and by nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lab3 import quantize_cache
from lab3.errors import InfraError, UsageError
from lab3.quantize import QuantizeResult
from lab3.quantize_cache import cache_key, code, quantize_cached

FACTS: dict[str, Any] = {
    "bits": 4,
    "group_size": 64,
    "samples": 8,
    "seqlen": 512,
    "search_scale": False,
    "device": "cpu",
    "weight_bytes_before": 100,
    "weight_bytes_after": 40,
    "predicted_weight_bytes": 40,
    "folder_bytes_before": 120,
    "folder_bytes_after": 60,
    "perplexity_before": 9.5,
    "perplexity_after": 10.0,
    "perplexity_kv_int4": None,
    "kv_int4_key_errors": (0.1, 0.2),
    "seconds": 1.0,
    "notices": ("group size 64",),
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny-chat"
    folder.mkdir()
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """What was quantized: LMDeploy's part is left out, the cache's is what is tested."""
    asked: list[dict[str, Any]] = []
    monkeypatch.setenv("LAB3_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(quantize_cache, "check_folder", lambda folder: folder)

    def quantize(model: Path, out: Path, *, progress: Any, **options: Any) -> QuantizeResult:
        asked.append({"out": out, **options})
        if options.get("bits") == 3:
            raise UsageError("no 3 bits")
        out.mkdir()
        (out / "weights").write_text("packed")
        return QuantizeResult(source=model, out=out, **FACTS)

    monkeypatch.setattr(quantize_cache, "quantize", quantize)
    return asked


def test_the_same_is_made_once_and_told_the_same(model: Path, made: list[dict[str, Any]]):
    first, second = quantize_cached(model), quantize_cached(model)
    assert len(made) == 1
    assert first == second
    assert first == QuantizeResult(source=model, out=first.out, **FACTS)
    assert (first.out / "weights").read_text() == "packed"
    assert first.out.name == "tiny-chat-w4a16", "the folder's name is the served model's"


@pytest.mark.parametrize("change", ["weights", "a new file", "an option", "a version", "lab3's code"])
def test_anything_else_is_made_anew(model: Path, made, monkeypatch: pytest.MonkeyPatch, change: str, tmp_path: Path):
    quantize_cached(model, {"samples": 8})
    options = {"samples": 8}
    if change == "weights":
        (model / "model.safetensors").write_bytes(b"other w")
    elif change == "a new file":
        (model / "chat_template.jinja").write_text("")
    elif change == "an option":
        options["samples"] = 16
    elif change == "a version":
        monkeypatch.setattr(quantize_cache.importlib.metadata, "version", lambda name: "0.19.0")
    else:
        monkeypatch.setattr(quantize_cache, "code", lambda: [Path(quantize_cache.__file__)])
    quantize_cached(model, options)
    assert len(made) == 2


def test_where_a_model_lies_and_when_it_was_written_do_not_count(model: Path, tmp_path: Path):
    copy = Path(shutil.copytree(model, tmp_path / "elsewhere" / "tiny-chat"))
    os.utime(copy / "config.json", (1, 1))
    assert cache_key(copy, {}) == cache_key(model, {})


def test_a_calibration_file_counts_by_its_content(model: Path, tmp_path: Path):
    texts = [tmp_path / "one.txt", tmp_path / "two.txt", tmp_path / "three.txt"]
    for path, text in zip(texts, ("same", "same", "other"), strict=True):
        path.write_text(text)
    one, two, three = (cache_key(model, {"calibration": path}) for path in texts)
    assert one == two
    assert one != three


def test_what_fails_leaves_nothing_and_is_tried_again(model: Path, made: list[dict[str, Any]], tmp_path: Path):
    for _ in range(2):
        with pytest.raises(UsageError, match="no 3 bits"):
            quantize_cached(model, {"bits": 3})
    assert len(made) == 2
    assert [path for path in (tmp_path / "cache/quantized").iterdir() if path.is_dir()] == []


def test_what_a_killed_process_left_is_cleared_away(model: Path, made: list[dict[str, Any]], tmp_path: Path):
    first = quantize_cached(model)
    entry = first.out.parent
    half = entry.with_name(f".{entry.name}.making")
    entry.rename(half)
    quantize_cached(model)
    assert len(made) == 2
    assert not half.exists()


def test_what_nobody_used_for_long_goes_and_what_was_used_stays(model: Path, made: list[dict[str, Any]]):
    old, used = quantize_cached(model, {"samples": 1}), quantize_cached(model, {"samples": 2})
    long_ago = time.time() - (quantize_cache.KEPT_DAYS + 1) * 86400
    for each in (old, used):
        os.utime(each.out.parent, (long_ago, long_ago))
    quantize_cached(model, {"samples": 2})
    quantize_cached(model, {"samples": 3})
    assert not old.out.exists()
    assert used.out.exists()


def test_a_cache_that_cannot_be_written_is_the_machines_trouble(model: Path, made, monkeypatch, tmp_path: Path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LAB3_CACHE", str(tmp_path / "file"))
    with pytest.raises(InfraError, match="cannot keep the quantized tiny-chat"):
        quantize_cached(model)


def test_all_of_lab3_that_the_quantizing_process_loads_is_in_the_key():
    """The modules are found by their imports' names; what Python really loads must be among them."""
    script = "import lab3.quantize, lab3.quantize_worker, sys; print(*[m for m in sys.modules if m[:5] == 'lab3.'])"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    known = {path.relative_to(Path(quantize_cache.__file__).parents[1]) for path in code()}
    assert "lab3.quantize" in loaded
    assert not [name for name in loaded if not {_file(name), _file(f"{name}.__init__")} & known]
    assert Path("lab3/pytest_plugin.py") not in known


def test_of_an_installed_lab3_its_neighbours_are_no_part(tmp_path: Path):
    here = Path(quantize_cache.__file__).parent
    site = tmp_path / "site-packages"
    shutil.copytree(here, site / "lab3", ignore=shutil.ignore_patterns("__pycache__", "reports", "web", "grading"))
    (site / "torch").mkdir()
    (site / "torch" / "__init__.py").write_text("")
    script = "from lab3.quantize_cache import code; print(*[path for path in code() if 'torch' in path.parts])"
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == []


def _file(name: str) -> Path:
    return Path(*name.split(".")).with_suffix(".py")
