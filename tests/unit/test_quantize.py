"""What is asked is checked before anything is written, sizes are predicted, and nothing is lost on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lab3 import quantize as module
from lab3.errors import InfraError, UsageError
from lab3.models import ModelConfig, read_config
from lab3.quantize import choose_group_size, finish_folder, folder_bytes, predict_weight_bytes, quantize
from tests.unit.test_models import CONFIG, folder, write_safetensors

__all__ = ["folder"]  # the fixture: a complete, tiny model folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def config(**changes: Any) -> ModelConfig:
    """The shape of InternLM2.5-1.8B unless told otherwise."""
    facts: dict[str, Any] = {
        "architecture": "InternLM2ForCausalLM", "model_type": "internlm2", "hidden_size": 2048,
        "intermediate_size": 8192, "layers": 24, "heads": 16, "kv_heads": 8, "head_dim": 128, "vocab_size": 92544,
        "tied_embeddings": False, "dtype": "bfloat16", "max_positions": 32768, "quantization": None,
        "remote_code": True,
    }  # fmt: skip
    return ModelConfig(**{**facts, **changes})


SMOLLM2 = config(
    hidden_size=576, intermediate_size=1536, layers=30, heads=9, kv_heads=3, head_dim=64, vocab_size=49152,
    tied_embeddings=True,
)  # fmt: skip


def test_the_labs_model_takes_the_1471_mib_measured_on_an_h100() -> None:
    assert predict_weight_bytes(config(), group_size=128) // 2**20 == 1471


def test_a_tiny_model_is_predicted_to_the_byte() -> None:
    tiny = config(
        hidden_size=64, intermediate_size=128, layers=1, heads=2, kv_heads=1, head_dim=32, vocab_size=10,
        tied_embeddings=True,
    )  # fmt: skip
    linear = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128
    groups = linear // 64
    assert predict_weight_bytes(tiny, group_size=64) == linear // 2 + groups * 2 + groups // 2 + 2 * (10 * 64 + 3 * 64)


def test_the_labs_group_size_is_kept_where_it_divides() -> None:
    assert choose_group_size(config()) == 128
    assert choose_group_size(config(), 64) == 64


@pytest.mark.parametrize(("hidden", "chosen"), [(576, 64), (96, 32)])
def test_a_smaller_group_size_is_taken_where_128_does_not_divide(hidden: int, chosen: int) -> None:
    assert (
        choose_group_size(config(hidden_size=hidden, intermediate_size=3 * hidden, heads=hidden // 32, head_dim=32))
        == chosen
    )


def test_inputs_of_every_linear_layer_count() -> None:
    assert choose_group_size(config(intermediate_size=8192 + 32)) == 32
    assert choose_group_size(config(heads=17, head_dim=64)) == 64


@pytest.mark.parametrize(("asked", "hidden"), [(128, 100), (64, 48), (100, 2048), (0, 2048)])
def test_no_fitting_group_size_is_refused(asked: int, hidden: int) -> None:
    with pytest.raises(UsageError, match="group size"):
        choose_group_size(config(hidden_size=hidden), asked)


@pytest.mark.parametrize(
    "wrong",
    [
        {"bits": 8}, {"samples": 0}, {"seqlen": 7}, {"batch_size": 0}, {"device": "tpu"}, {"device": "cuda:x"},
        {"dtype": "float32"}, {"group_size": 96}, {"calibration": Path("/no/such.txt")},
    ],
)  # fmt: skip
def test_a_bad_argument_is_refused_before_anything_is_written(folder: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        quantize(folder, folder.parent / "out", **wrong)
    assert names(folder.parent) == ["model"]


@pytest.mark.parametrize("method", ["awq", "gptq", "fp8"])
def test_a_quantized_model_is_refused_by_its_method(folder: Path, method: str) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, "quantization_config": {"quant_method": method}}))
    with pytest.raises(UsageError, match=rf"already quantized \({method}\)"):
        quantize(folder, folder.parent / "out")


def test_an_architecture_that_lmdeploy_does_not_know_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, "architectures": ["BloomForCausalLM"]}))
    with pytest.raises(UsageError, match="BloomForCausalLM"):
        quantize(folder, folder.parent / "out")


def test_a_full_disk_is_the_machines_trouble(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type(module.shutil.disk_usage("/"))(10, 9, 1)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda place: usage)
    with pytest.raises(InfraError, match="GB free"):
        quantize(folder, folder.parent / "out")


class TestTarget:
    """What `out` may be. The worker is replaced by a line of Python."""

    @pytest.fixture
    def worker(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        """Call it with the Python code that is to run in the worker's place, knowing JOB and `send`."""
        popen = module.subprocess.Popen
        head = (
            "import json, os, shutil, sys; JOB = json.loads(sys.argv[1])\n"
            "def send(**event): print(json.dumps(event), flush=True)\n"
        )

        def use(code: str) -> None:
            def fake(command: list[str], **options: Any) -> Any:
                return popen([sys.executable, "-c", head + code, command[-1]], **options)

            monkeypatch.setattr(module.subprocess, "Popen", fake)

        return use

    MAKE = (
        "shutil.copytree(JOB['model'], JOB['out']); open(JOB['out'] + '/inputs_stats.pth', 'w').close()\n"
        "send(result=dict(samples=1, seqlen=8, device='cpu', perplexity_before=2.0, perplexity_after=2.1,\n"
        "    perplexity_kv_int4=2.2, kv_int4_key_errors=[0.1], notices=[]))"
    )

    def test_the_new_folder_is_put_in_place_and_nothing_else(self, folder: Path, worker: Any) -> None:
        worker(self.MAKE)
        out = folder.parent / "made" / "out"
        result = quantize(folder, out)
        assert names(out.parent) == ["out"]
        assert names(out) == ["config.json", "model.safetensors", "tokenizer.json"]
        assert result.perplexity_ratio == pytest.approx(1.05)
        assert result.notices == ("group size 64 instead of 128, which does not divide 64/128 inputs",)
        assert json.loads(json.dumps(result.to_dict()))["out"] == str(out)

    def test_an_existing_folder_is_kept_unless_told_otherwise(self, folder: Path, worker: Any) -> None:
        worker(self.MAKE)
        out = folder.parent / "out"
        out.mkdir()
        (out / "config.json").write_text("old")
        with pytest.raises(UsageError, match="exists"):
            quantize(folder, out)
        assert (out / "config.json").read_text() == "old"
        quantize(folder, out, overwrite=True)
        assert read_config(out).hidden_size == 64
        assert names(folder.parent) == ["model", "out"]

    def test_a_folder_that_is_no_model_is_never_overwritten(self, folder: Path) -> None:
        out = folder.parent / "thesis"
        out.mkdir()
        (out / "chapter1.txt").write_text("years of work")
        with pytest.raises(UsageError, match="not a model folder"):
            quantize(folder, out, overwrite=True)

    @pytest.mark.parametrize("where", [".", "..", "inside"])
    def test_the_source_is_never_the_target(self, folder: Path, where: str) -> None:
        with pytest.raises(UsageError, match="overlaps"):
            quantize(folder, Path(os.path.normpath(folder / where)), overwrite=True)

    @pytest.mark.parametrize(
        ("code", "error", "said"),
        [
            ("sys.stderr.write('Killed by testing\\n'); sys.exit(7)", InfraError, "status 7: Killed by testing"),
            ("import signal; os.kill(os.getpid(), signal.SIGKILL)", InfraError, "status -9"),
            ("send(error=dict(kind='UsageError', what='too short', why='', todo=''))", UsageError, "too short"),
        ],
    )
    def test_a_failed_worker_leaves_the_old_folder(
        self, folder: Path, worker: Any, code: str, error: type[Exception], said: str
    ) -> None:
        worker("os.mkdir(JOB['out'])\n" + code)
        out = folder.parent / "out"
        out.mkdir()
        (out / "config.json").write_text("old")
        with pytest.raises(error, match=said):
            quantize(folder, out, overwrite=True)
        assert (out / "config.json").read_text() == "old"
        assert names(folder.parent) == ["model", "out"]

    def test_an_interruption_ends_the_worker_and_leaves_nothing(self, folder: Path, worker: Any) -> None:
        worker(
            "os.mkdir(JOB['out']); send(message=str(os.getpid()), done=None, total=None)\nimport time; time.sleep(60)"
        )
        pids = []

        def interrupt(message: str, *, done: float | None = None, total: float | None = None) -> None:
            if message.isdigit():
                pids.append(int(message))
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            quantize(folder, folder.parent / "out", progress=interrupt)
        assert names(folder.parent) == ["model"]
        with pytest.raises(ProcessLookupError):
            os.kill(pids[0], 0)


def test_the_old_folder_comes_back_when_the_new_one_cannot_be_put_in_its_place(tmp_path: Path) -> None:
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    out.mkdir()
    (out / "config.json").write_text("old")
    scratch.mkdir()  # without the new folder
    with pytest.raises(FileNotFoundError):
        module._put_in_place(scratch, out)
    assert (out / "config.json").read_text() == "old"


def test_folder_bytes_are_those_of_du(tmp_path: Path) -> None:
    import subprocess

    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_bytes(b"x" * 10_000)
    os.link(tmp_path / "sub" / "a", tmp_path / "again")
    (tmp_path / "link").symlink_to("again")
    counted = subprocess.run(["du", "-s", "-B1", str(tmp_path)], capture_output=True, text=True, check=True).stdout
    assert folder_bytes(tmp_path) == int(counted.split()[0])


def test_what_serving_needs_is_carried_along(folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (made / name).write_bytes((folder / name).read_bytes())
    write_safetensors(made / "model.safetensors", {"a": ("F16", [1], 2)})
    (made / "outputs_stats.pth").touch()
    (folder / "chat_template.jinja").write_text("template")
    (folder / "generation_config.json").write_text("{}")
    finish_folder(folder, made)
    assert (made / "chat_template.jinja").read_text() == "template"
    assert (made / "generation_config.json").is_file()
    assert not (made / "outputs_stats.pth").exists()


def test_awq_tensors_are_dequantized_by_the_papers_formula() -> None:
    import torch

    from lab3.perplexity import dequantize_awq

    generator = torch.Generator().manual_seed(0)
    q = torch.randint(0, 16, (64, 16), generator=generator, dtype=torch.int32)
    z = torch.randint(0, 16, (2, 16), generator=generator, dtype=torch.int32)
    scales = torch.rand((2, 16), generator=generator).half()

    def packed(values: torch.Tensor) -> torch.Tensor:
        """As AutoAWQ packs: nibble i of a word holds column order[i]."""
        words = torch.zeros((values.shape[0], 2), dtype=torch.int32)
        for word in range(2):
            for nibble, column in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
                words[:, word] |= values[:, 8 * word + column] << (4 * nibble)
        return words

    weight = dequantize_awq(packed(q), scales, packed(z), group_size=32)
    assert weight.shape == (16, 64)
    for n, k in ((0, 0), (3, 31), (9, 32), (15, 63)):
        assert weight[n, k] == (q[k, n] - z[k // 32, n]) * scales[k // 32, n].float()


def test_the_worker_ends_as_it_should_while_its_standard_input_is_open(tmp_path: Path) -> None:
    code = "from lab3 import quantize_worker as w; w._work = lambda *_: {}; import sys; sys.exit(w.main(sys.argv[1:]))"
    job = json.dumps({"out": str(tmp_path / "scratch" / "model")})
    command = [sys.executable, "-c", code, job]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as worker:
        said, errors = worker.stdout.read(), worker.stderr.read()  # type: ignore[union-attr]
        assert (worker.wait(), json.loads(said), errors) == (0, {"result": {}}, b"")
