"""A model by name or path becomes a local folder, or an error that says what is wrong with it."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import types
from pathlib import Path
from typing import ClassVar

import pytest

from lab3 import embedded
from lab3.errors import InfraError, UsageError
from lab3.models import model_tensors, read_config, read_tensors, resolve

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "dtype": "float16",
}


def write_safetensors(path: Path, tensors: dict[str, tuple[str, list[int], int]]) -> None:
    """Tensors given as name -> (dtype, shape, bytes), all zero."""
    header, start = {}, 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + size]}
        start += size
    text = json.dumps({**header, "__metadata__": {"format": "pt"}}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(start))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    write_safetensors(folder / "model.safetensors", {"a": ("F16", [2, 3], 12), "b": ("I32", [4], 16)})
    return folder


def test_a_complete_folder_resolves_to_itself(folder: Path) -> None:
    assert resolve(folder) == folder
    assert resolve(str(folder)) == folder


@pytest.mark.parametrize(
    ("removed", "named"),
    [("config.json", "no config.json"), ("tokenizer.json", "no tokenizer"), ("model.safetensors", "no weights")],
)
def test_a_folder_that_lacks_a_part_is_refused_by_name_of_the_part(folder: Path, removed: str, named: str) -> None:
    (folder / removed).unlink()
    with pytest.raises(UsageError, match=named):
        resolve(folder)


def test_an_index_that_names_a_missing_shard_is_refused(folder: Path) -> None:
    weight_map = {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UsageError, match=r"lacks 1 of 2 .*model-00002-of-00002"):
        resolve(folder)


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", b"", b"\0" * 9])
def test_weights_that_are_not_weights_are_refused(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(UsageError, match="not a complete safetensors"):
        resolve(folder)


def test_weights_cut_off_by_one_byte_are_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UsageError, match="not a complete safetensors"):
        resolve(folder)


@pytest.mark.parametrize("config", ["", "[]", "{}", '{"hidden_size": "wide"}'])
def test_a_config_that_describes_no_decoder_is_refused(folder: Path, config: str) -> None:
    (folder / "config.json").write_text(config)
    with pytest.raises(UsageError, match=r"config\.json"):
        resolve(folder)


def test_a_file_is_not_a_model_folder(folder: Path) -> None:
    with pytest.raises(UsageError, match="is a file"):
        resolve(folder / "config.json")


@pytest.mark.parametrize("name", ["nowhere", "/no/such/folder", "a/b/c", "./a", "org/"])
def test_a_name_that_is_neither_folder_nor_hub_id_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="no model at"):
        resolve(name)


def test_an_unreachable_hub_is_the_machines_trouble_and_names_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fail(*_: object, **__: object) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.delenv("LMDEPLOY_USE_MODELSCOPE", raising=False)
    with pytest.raises(InfraError, match="no route to host") as caught:
        resolve("internlm/internlm2_5-1_8b-chat")
    ways_out = ("LMDEPLOY_USE_MODELSCOPE", "pip install '.[modelscope]'", "HF_ENDPOINT", "embedded", "pass the folder")
    for way_out in ways_out:
        assert way_out in caught.value.todo


def test_a_hub_id_that_was_downloaded_before_needs_no_hub(folder: Path, tmp_path: Path) -> None:
    """The hub's own client finds it in its own cache."""
    commit = "0" * 40
    repository = tmp_path / "hub" / "models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    folder.rename(repository / "snapshots" / commit)
    code = "from lab3.models import resolve; print(resolve('org/tiny'))"
    offline = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "LMDEPLOY_USE_MODELSCOPE": "False"}
    told = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | offline, capture_output=True, text=True, check=True
    )
    assert Path(told.stdout.strip()) == repository / "snapshots" / commit


def test_modelscope_is_asked_when_lmdeploy_would_ask_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def snapshot_download(name: str, **_: object) -> str:
        asked.append(name)
        return str(folder)

    monkeypatch.setenv("LMDEPLOY_USE_MODELSCOPE", "True")
    monkeypatch.setitem(sys.modules, "modelscope", types.SimpleNamespace(snapshot_download=snapshot_download))
    assert resolve("Shanghai_AI_Laboratory/internlm2_5-1_8b-chat") == folder
    assert asked == ["Shanghai_AI_Laboratory/internlm2_5-1_8b-chat"]

    def unreachable(*_: object, **__: object) -> str:
        raise ConnectionError("no route")

    monkeypatch.setitem(sys.modules, "modelscope", types.SimpleNamespace(snapshot_download=unreachable))
    with pytest.raises(InfraError, match="from ModelScope: no route") as caught:
        resolve("some/model")
    assert "unset LMDEPLOY_USE_MODELSCOPE" in caught.value.todo, "setting it is no way out"

    monkeypatch.setitem(sys.modules, "modelscope", None)  # as if it were not installed
    with pytest.raises(InfraError, match="not installed") as caught:
        resolve("Shanghai_AI_Laboratory/internlm2_5-1_8b-chat")
    assert "pip install '.[modelscope]'" in caught.value.todo


def test_a_config_is_read_with_its_defaults(folder: Path) -> None:
    config = read_config(folder)
    assert (config.kv_heads, config.head_dim, config.tied_embeddings, config.dtype) == (4, 16, False, "float16")
    assert config.quantization is None
    assert not config.remote_code


def test_an_older_config_is_read_too(folder: Path) -> None:
    old = {**CONFIG, "num_key_value_heads": 2, "torch_dtype": "bfloat16", "auto_map": {"AutoModel": "x.Y"}}
    del old["dtype"]
    (folder / "config.json").write_text(json.dumps(old))
    config = read_config(folder)
    assert (config.kv_heads, config.dtype, config.remote_code) == (2, "bfloat16", True)


def test_tensors_are_read_from_the_header_alone(folder: Path) -> None:
    first, second = model_tensors(folder)
    assert (first.name, first.shape, first.dtype, first.size_bytes) == ("a", (2, 3), "F16", 12)
    assert (second.name, second.shape, second.dtype, second.size_bytes) == ("b", (4,), "I32", 16)
    assert read_tensors(folder / "model.safetensors") == [first, second]


def test_importing_models_is_cheap() -> None:
    code = "import sys, lab3.models; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'lmdeploy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class TestEmbedded:
    """The embedded model's cache; pip, the conversion and the merging are replaced."""

    @pytest.fixture(autouse=True)
    def cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("LAB3_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(embedded.toolcaller, "build", self.build)
        return tmp_path / "cache"

    def build(self, base: Path, adapter: Path, out: Path) -> None:
        shutil.copytree(base, out)
        (out / "merged.txt").write_text(adapter.name)

    @pytest.fixture
    def wheel(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A good wheel in the cache, whose GGUF is the text "gguf"."""
        import zipfile

        cache.mkdir()
        wheel = cache / embedded.WHEEL
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(embedded.GGUF, "gguf")
        monkeypatch.setattr(embedded, "_WHEEL_SHA256", embedded._sha256(wheel))
        return wheel

    def convert(self, gguf: Path, out: Path, template: str) -> None:
        assert gguf.read_text() == "gguf"
        out.mkdir()
        (out / "config.json").write_text(json.dumps(CONFIG))
        (out / "tokenizer.json").write_text("{}")
        write_safetensors(out / "model.safetensors", {"a": ("F16", [1], 2)})

    def test_it_is_made_once_from_the_wheel_that_is_there(
        self, cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(embedded, "_convert_gguf", self.convert)
        made = resolve("embedded")
        assert made.parent == cache
        monkeypatch.setattr(embedded, "_convert_gguf", None)  # a second conversion would fail
        assert resolve("embedded") == made
        assert sorted(path.name for path in cache.iterdir()) == sorted([made.name, wheel.name, "embedded.lock"])

    @pytest.mark.usefixtures("wheel")
    def test_another_adapter_makes_another_folder_and_none_the_base(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(embedded, "_convert_gguf", self.convert)
        first = resolve("embedded")
        assert (first / "merged.txt").read_text() == "toolcaller"
        other = shutil.copytree(embedded._ADAPTER, tmp_path / "other")
        monkeypatch.setattr(embedded, "_ADAPTER", other)
        assert resolve("embedded") == first  # the content counts, not the place
        (other / "README.md").write_text("another card")
        assert resolve("embedded") == first
        (other / "changes.safetensors").write_bytes(b"other")
        second = resolve("embedded")
        assert second != first
        assert (second / "merged.txt").read_text() == "other"
        base = embedded.embedded_folder(lambda message, **_: None, tool_caller=False)
        assert base not in (first, second)
        assert not (base / "merged.txt").exists()

    @pytest.mark.usefixtures("wheel")
    def test_where_the_base_lies_already_it_is_not_converted_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(embedded, "_convert_gguf", self.convert)
        base = embedded.embedded_folder(lambda message, **_: None, tool_caller=False)
        monkeypatch.setattr(embedded, "_convert_gguf", None)  # a second conversion would fail
        made = resolve("embedded")
        assert (made / "merged.txt").read_text() == "toolcaller"
        assert made != base
        assert sorted(path.name for path in base.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]

    @pytest.mark.usefixtures("wheel")
    def test_a_broken_conversion_leaves_nothing_half_made(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(gguf: Path, out: Path, template: str) -> None:
            self.convert(gguf, out, template)
            raise KeyboardInterrupt

        monkeypatch.setattr(embedded, "_convert_gguf", fail)
        with pytest.raises(KeyboardInterrupt):
            resolve("embedded")
        assert sorted(path.name for path in cache.iterdir()) == ["embedded.lock", embedded.WHEEL]

    def test_a_gguf_is_parsed_once_while_it_is_converted_and_anew_afterwards(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import gguf

        parsed: list[str] = []
        monkeypatch.setattr(gguf, "GGUFReader", lambda path: parsed.append(path) or len(parsed))
        monkeypatch.delattr(gguf, "get_tensor_name_map")  # a gguf that has moved is no trouble
        with embedded._read_once():
            assert gguf.GGUFReader("a") == gguf.GGUFReader("a") == 1
            assert gguf.GGUFReader("b") == 2
        assert gguf.GGUFReader("a") == 3

    @pytest.mark.usefixtures("wheel")
    def test_what_a_killed_process_left_is_cleared(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (cache / ".building-x" / "model").mkdir(parents=True)
        monkeypatch.setattr(embedded, "_convert_gguf", self.convert)
        resolve("embedded")
        assert not list(cache.glob(".building-*"))

    def test_a_wheel_with_another_hash_is_not_used(self, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        wheel.write_bytes(wheel.read_bytes() + b"!")
        self.pip(monkeypatch, "import pathlib; pathlib.Path(DEST, WHEEL).write_text('other')")
        with pytest.raises(InfraError, match="not the expected one"):
            resolve("embedded")

    def test_a_failed_download_quotes_pip(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pip(monkeypatch, "print('ERROR: no matching distribution'); raise SystemExit(1)")
        with pytest.raises(InfraError, match="no matching distribution"):
            resolve("embedded")

    def test_a_download_reports_its_bytes(self, wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source = wheel.rename(cache.parent / "served.whl")
        copy = f"import shutil; shutil.copy({str(source)!r}, DEST + '/' + WHEEL)"
        self.pip(monkeypatch, f"print('Progress 5 of 10'); {copy}")
        monkeypatch.setattr(embedded, "_convert_gguf", self.convert)
        seen: list[tuple[float | None, float | None]] = []

        def progress(message: str, *, done: float | None = None, total: float | None = None) -> None:
            seen.append((done, total))

        resolve("embedded", progress=progress)
        assert (5, 10) in seen

    def pip(self, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
        """Replace pip by a line of Python that knows DEST and WHEEL."""
        popen = subprocess.Popen

        def fake(command: list[str], **options: object) -> object:
            dest = command[command.index("--dest") + 1]
            return popen([sys.executable, "-c", f"DEST, WHEEL = {dest!r}, {embedded.WHEEL!r}\n{code}"], **options)

        monkeypatch.setattr(embedded.subprocess, "Popen", fake)


class TestChatTemplate:
    """The embedded model's chat template, rendered as transformers renders it."""

    TOOLS: ClassVar = [
        {"type": "function", "function": {"name": "add", "description": "Add two numbers", "parameters": {}}}
    ]

    def render(self, messages: list[dict[str, object]], **options: object) -> str:
        from transformers.utils.chat_template_utils import render_jinja_template

        (text,), _ = render_jinja_template([messages], chat_template=embedded._template(), **options)
        return text

    def test_a_plain_chat_is_chatml_with_smollms_system_message(self) -> None:
        text = self.render([{"role": "user", "content": "Hi"}], add_generation_prompt=True)
        assert text == (
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        )

    def test_tools_follow_the_users_own_system_message(self) -> None:
        text = self.render([{"role": "system", "content": "S"}, {"role": "user", "content": "u"}], tools=self.TOOLS)
        assert text == (
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>system name=<|plugin|>\n"
            '[{"name": "add", "description": "Add two numbers", "parameters": {}}]<|im_end|>\n'
            "<|im_start|>user\nu<|im_end|>\n"
        )

    @pytest.mark.parametrize("arguments", [{"a": 3, "b": "é"}, '{"a": 3, "b": "é"}'])
    @pytest.mark.parametrize("role", ["tool", "environment"])
    def test_calls_and_results_are_written_as_internlm2_does(self, arguments: object, role: str) -> None:
        calls = [{"id": "1", "type": "function", "function": {"name": "add", "arguments": arguments}}]
        messages: list[dict[str, object]] = [
            {"role": "user", "content": [{"type": "text", "text": "3+5"}]},
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": role, "content": "8", "tool_call_id": "1"},
            {"role": "assistant", "content": "Now:", "tool_calls": calls},
        ]
        assert self.render(messages, tools=self.TOOLS).endswith(
            "<|im_start|>user\n3+5<|im_end|>\n"
            '<|im_start|>assistant\n<|action_start|><|plugin|>\n{"name": "add", "parameters": {"a": 3, "b": "é"}}'
            "<|action_end|><|im_end|>\n"
            "<|im_start|>environment name=<|plugin|>\n8<|im_end|>\n"
            '<|im_start|>assistant\nNow:<|action_start|><|plugin|>\n{"name": "add", "parameters": {"a": 3, "b": "é"}}'
            "<|action_end|><|im_end|>\n"
        )
