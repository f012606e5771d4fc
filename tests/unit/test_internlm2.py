"""InternLM2 in Llama's layout: the same weights under other names, the same token ids, and nothing of it run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lab3 import internlm2
from lab3.errors import InfraError, UsageError
from lab3.internlm2 import Heads, llama_config, llama_tensors, to_llama
from lab3.internlm2_tokenizer import SPECIAL, fast_tokenizer
from lab3.models import resolve
from tests import internlm2_folder as made


@pytest.fixture(scope="session")
def source(internlm2_tokenizer: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.write(tmp_path_factory.mktemp("internlm2") / "internlm2_5-tiny", internlm2_tokenizer, shards=3)


@pytest.fixture(scope="session")
def converted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return to_llama(source, tmp_path_factory.mktemp("llama") / "tiny")


@pytest.fixture
def own_source(internlm2_tokenizer: bytes, tmp_path: Path) -> Path:
    return made.write(tmp_path / "own", internlm2_tokenizer)


class TestWeights:
    def test_wqkv_holds_for_each_kv_head_its_queries_then_its_key_then_its_value(self) -> None:
        # Every row says whose it is: 100 x KV head + 10 x place in the group + row of the head.
        rows = [[100 * kv + 10 * place + row] for kv in range(2) for place in range(4) for row in range(3)]
        split = dict(llama_tensors("model.layers.7.attention.wqkv.weight", torch.tensor(rows), Heads(group=2, kv=2)))
        assert {name: tensor.flatten().tolist() for name, tensor in split.items()} == {
            "model.layers.7.self_attn.q_proj.weight": [0, 1, 2, 10, 11, 12, 100, 101, 102, 110, 111, 112],
            "model.layers.7.self_attn.k_proj.weight": [20, 21, 22, 120, 121, 122],
            "model.layers.7.self_attn.v_proj.weight": [30, 31, 32, 130, 131, 132],
        }

    def test_packed_awq_weights_are_split_as_their_unpacked_ones_are(self) -> None:
        from lmdeploy.lite.quantization import WeightQuantizer
        from lmdeploy.lite.quantization.modules import WeightOnlyQLinear

        def pack(weight: torch.Tensor) -> dict[str, torch.Tensor]:
            linear = torch.nn.Linear(*reversed(weight.shape), bias=False)
            linear.weight = torch.nn.Parameter(weight, requires_grad=False)
            quantizer = WeightQuantizer(bits=4, symmetry=False, granularity="per_group", group_size=64)
            return dict(WeightOnlyQLinear.from_linear(linear, quantizer).state_dict())

        heads, name = Heads(made.HEADS // made.KV_HEADS, made.KV_HEADS), "model.layers.0.attention.wqkv"
        wqkv = made.weights()[f"{name}.weight"].half()
        split_first = {
            new.replace("weight", leaf): tensor
            for new, part in llama_tensors(f"{name}.weight", wqkv, heads)
            for leaf, tensor in pack(part).items()
        }
        packed_first = {
            new: part
            for leaf, tensor in pack(wqkv).items()
            for new, part in llama_tensors(f"{name}.{leaf}", tensor, heads)
        }
        assert set(packed_first) == set(split_first)
        assert len(packed_first) == 9
        assert all(torch.equal(packed_first[new], tensor) for new, tensor in split_first.items())

    def test_every_value_is_there_once_and_unchanged(self, source: Path, converted: Path) -> None:
        old = {name: tensor for file in source.glob("*.safetensors") for name, tensor in load_file(file).items()}
        new = {name: tensor for file in converted.glob("*.safetensors") for name, tensor in load_file(file).items()}
        assert len(new) == len(old) + 2 * made.LAYERS
        assert sum(each.numel() for each in new.values()) == sum(each.numel() for each in old.values())
        assert torch.equal(new["lm_head.weight"], old["output.weight"])
        assert torch.equal(new["model.layers.1.mlp.up_proj.weight"], old["model.layers.1.feed_forward.w3.weight"])
        index = json.loads((converted / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"]) == set(new)
        assert index["metadata"]["total_size"] == sum(2 * each.numel() for each in new.values())

    def test_transformers_loads_every_weight_and_misses_none(self, converted: Path) -> None:
        from transformers import AutoModelForCausalLM

        _, report = AutoModelForCausalLM.from_pretrained(converted, output_loading_info=True)
        assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))

    def test_files_of_pickled_tensors_are_read_without_running_them(self, own_source: Path, tmp_path: Path) -> None:
        tensors = load_file(own_source / "model.safetensors")
        (own_source / "model.safetensors").unlink()
        torch.save(tensors, own_source / "pytorch_model.bin")
        new = load_file(to_llama(own_source, tmp_path / "out") / "model.safetensors")
        assert torch.equal(new["lm_head.weight"], tensors["output.weight"])

        class Evil:
            def __reduce__(self) -> Any:
                return (Path.touch, (tmp_path / "ran",))

        torch.save({"model.norm.weight": Evil()}, own_source / "pytorch_model.bin")
        with pytest.raises(UsageError, match="cannot be read as weights"):
            to_llama(own_source, tmp_path / "again")
        assert not (tmp_path / "ran").exists()


class TestConfig:
    def test_dynamic_rope_scaling_is_kept(self, converted: Path) -> None:
        config = json.loads((converted / "config.json").read_text())
        assert config["rope_parameters"] == {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 2.0}
        assert config["max_position_embeddings"] == 64
        assert (config["architectures"], config["model_type"]) == (["LlamaForCausalLM"], "llama")
        assert "auto_map" not in config

    @pytest.mark.parametrize("scaling", [None, {"type": "linear", "factor": 3}])
    def test_other_scalings_too(self, scaling: dict[str, Any] | None) -> None:
        rope = llama_config(made.config(rope_scaling=scaling))["rope_parameters"]
        assert rope["rope_type"] == ("linear" if scaling else "default")
        assert rope.get("factor") == (3.0 if scaling else None)

    def test_an_unknown_scaling_is_refused(self) -> None:
        with pytest.raises(UsageError, match="yarn"):
            llama_config(made.config(rope_scaling={"type": "yarn", "factor": 2}))

    def test_a_turn_ends_with_im_end_whatever_the_config_says(self, converted: Path) -> None:
        assert json.loads((converted / "generation_config.json").read_text())["eos_token_id"] == [2, 92542]


class TestTokenizer:
    def test_ids_are_sentencepiece_s_own(self, internlm2_texts: list[str], source: Path, converted: Path) -> None:
        import sentencepiece
        from transformers import AutoTokenizer

        reference = sentencepiece.SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
        tokenizer = AutoTokenizer.from_pretrained(converted)
        special = (*SPECIAL.values(), "<s>", "</s>", "<unk>")
        plain = [text for text in internlm2_texts if not any(token in text for token in special)]
        assert len(plain) > 10_000
        ours = tokenizer(plain, add_special_tokens=False).input_ids
        assert [text for text, ids in zip(plain, ours, strict=True) if ids != reference.encode(text)] == []
        spaced = [text for text in plain if "▁" not in text][::3]  # SentencePiece's own sign of a space
        assert len(spaced) > 10_000
        assert [text for text in spaced if tokenizer.decode(tokenizer(text).input_ids[1:]) != text] == []

    def test_special_tokens_have_internlm_s_ids_and_part_the_text(self, source: Path, converted: Path) -> None:
        import sentencepiece
        from transformers import AutoTokenizer

        reference = sentencepiece.SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
        tokenizer = AutoTokenizer.from_pretrained(converted)
        for number, token in {**SPECIAL, 1: "<s>", 2: "</s>"}.items():
            for before, after in (("", ""), ("  a", "b  "), ("你好", "\n"), ("x ", " y")):
                expected = [*reference.encode(before), number, *reference.encode(after)]
                assert tokenizer(before + token + after, add_special_tokens=False).input_ids == expected
        assert tokenizer("a").input_ids == [1, *reference.encode("a")]
        assert tokenizer.decode([92543, 92542], skip_special_tokens=True) == ""

    def test_a_file_that_is_no_such_tokenizer_is_refused(self, tmp_path: Path, internlm2_tokenizer: bytes) -> None:
        (tmp_path / "cut").write_bytes(internlm2_tokenizer[:100_000])
        with pytest.raises(UsageError, match=r"no SentencePiece model|not a tokenizer of InternLM2's kind"):
            fast_tokenizer(tmp_path / "cut", SPECIAL)
        (tmp_path / "whole").write_bytes(internlm2_tokenizer)
        with pytest.raises(UsageError, match="id 100000"):
            fast_tokenizer(tmp_path / "whole", {100_000: "<|new|>"})


class TestTemplate:
    TOOL = {"name": "add", "description": "Add.", "parameters": {"type": "object", "properties": {}}}  # noqa: RUF012

    def test_tools_calls_and_results_are_written_as_internlm2_writes_them(self, converted: Path) -> None:
        from transformers import AutoTokenizer

        call = {"type": "function", "function": {"name": "add", "arguments": {"a": 3, "b": 5}}}
        talk = [
            {"role": "user", "content": "3+5?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "8"},
            {"role": "environment", "content": "3+5=8"},
        ]
        tokenizer = AutoTokenizer.from_pretrained(converted)
        text = tokenizer.apply_chat_template(talk, tools=[self.TOOL], tokenize=False, add_generation_prompt=True)
        assert text == (
            f"<s><|im_start|>system name=<|plugin|>\n[{json.dumps(self.TOOL)}]<|im_end|>\n"
            "<|im_start|>user\n3+5?<|im_end|>\n"
            '<|im_start|>assistant\n<|action_start|><|plugin|>\n{"name": "add", "parameters": {"a": 3, "b": 5}}'
            "<|action_end|><|im_end|>\n"
            "<|im_start|>environment name=<|plugin|>\n8<|im_end|>\n"
            "<|im_start|>environment name=<|plugin|>\n3+5=8<|im_end|>\n"
            "<|im_start|>assistant\n"
        )

    def test_lmdeploy_puts_one_bos_before_it(self, converted: Path) -> None:
        from lmdeploy.tokenizer import Tokenizer

        ids = Tokenizer(str(converted)).encode("<s><|im_start|>user\nHi<|im_end|>\n", add_bos=True)
        assert ids[:2] == [1, 92543]


class TestLife:
    def test_resolving_such_a_folder_gives_its_like_from_the_cache_and_runs_nothing_of_it(
        self, own_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LAB3_CACHE", str(tmp_path / "cache"))
        folder = resolve(own_source)
        assert folder.name == own_source.name
        assert folder.is_relative_to(tmp_path / "cache")
        monkeypatch.setattr(internlm2, "to_llama", None)  # a second time nothing is made
        assert resolve(own_source) == folder
        assert not (own_source / "ran").exists()

    def test_another_content_is_another_folder(
        self, own_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LAB3_CACHE", str(tmp_path / "cache"))
        first = resolve(own_source)
        save_file(made.weights(seed=1), own_source / "model.safetensors")
        second = resolve(own_source)
        assert first != second
        assert not torch.equal(*(load_file(each / "model.safetensors")["lm_head.weight"] for each in (first, second)))

    def test_what_was_broken_off_is_gone_on_with(
        self, source: Path, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real, seen = internlm2._convert_file, []

        def fail_at_the_second(file: Path, out: Path, heads: Heads) -> None:
            seen.append(file.name)
            if len(seen) == 2:
                raise KeyboardInterrupt
            real(file, out, heads)

        monkeypatch.setattr(internlm2, "_convert_file", fail_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            to_llama(source, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        to_llama(source, tmp_path / "out")
        assert [name[:11] for name in seen] == ["model-00001", "model-00002", "model-00002", "model-00003"]
        assert {each.name for each in (tmp_path / "out").iterdir()} == {each.name for each in converted.iterdir()}
        for file in converted.iterdir():
            assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes(), file.name

    def test_nothing_is_begun_without_room(self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = type("Usage", (), {"free": 1000})
        monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
        with pytest.raises(InfraError, match=r"0\.0 GB free"):
            to_llama(source, tmp_path / "out")


class TestBadInput:
    def refused(self, folder: Path, out: Path, match: str) -> UsageError:
        with pytest.raises(UsageError, match=match) as caught:
            to_llama(folder, out)
        assert caught.value.todo
        assert not out.exists()
        return caught.value

    def test_a_cut_off_weight_file(self, own_source: Path, tmp_path: Path) -> None:
        whole = (own_source / "model.safetensors").read_bytes()
        (own_source / "model.safetensors").write_bytes(whole[:-1000])
        self.refused(own_source, tmp_path / "out", "not a complete safetensors file")

    def test_a_missing_tensor(self, own_source: Path, tmp_path: Path) -> None:
        tensors = load_file(own_source / "model.safetensors")
        del tensors["model.layers.1.feed_forward.w2.weight"]
        save_file(tensors, own_source / "model.safetensors")
        self.refused(own_source, tmp_path / "out", r"lacks 1 of 17 tensors: model.layers.1.feed_forward.w2.weight")

    def test_a_tensor_that_internlm2_does_not_have(self, own_source: Path, tmp_path: Path) -> None:
        tensors = load_file(own_source / "model.safetensors")
        tensors["model.layers.0.attention.gate.weight"] = torch.zeros(2)
        save_file(tensors, own_source / "model.safetensors")
        self.refused(own_source, tmp_path / "out", "attention.gate.weight, which InternLM2 does not have")

    def test_a_config_of_another_model(self, own_source: Path, tmp_path: Path) -> None:
        (own_source / "config.json").write_text(json.dumps(made.config(num_key_value_heads=4)))
        self.refused(own_source, tmp_path / "out", "wqkv is 256 x 128, and by config.json it is 384 x 128")
        (own_source / "config.json").write_text(json.dumps(made.config(model_type="llama")))
        self.refused(own_source, tmp_path / "out", "not internlm2")

    def test_a_missing_tokenizer_or_an_unknown_scaling_before_the_work_begins(
        self, own_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(internlm2, "_convert_file", None)
        scaled = made.config(rope_scaling={"type": "yarn", "factor": 2})
        (own_source / "config.json").write_text(json.dumps(scaled))
        self.refused(own_source, tmp_path / "out", "yarn")
        (own_source / "tokenizer.model").unlink()
        self.refused(own_source, tmp_path / "out", "no tokenizer.model")

    def test_a_target_that_exists(self, own_source: Path, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        with pytest.raises(UsageError, match="exists"):
            to_llama(own_source, tmp_path / "out")
