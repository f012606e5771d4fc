"""Calibration text is read from files or comes with lab3, and is cut into the blocks that LMDeploy expects."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from lab3.calibration import (
    Blocks,
    Sample,
    amount,
    bundled_calibration,
    bundled_heldout,
    pack,
    read_samples,
    substituted_loader,
    tokenize,
)
from lab3.errors import InfraError, UsageError


class CharTokenizer:
    """One token a character; a chat renders as its contents between angle brackets."""

    chat_template: str | None = "some"

    def __call__(self, text: str, **_: Any) -> Any:
        return types.SimpleNamespace(input_ids=[ord(letter) for letter in text])

    def apply_chat_template(self, messages: list[dict[str, Any]], **_: Any) -> str:
        return "".join(f"<{message['content']}>" for message in messages)


def text_of(ids: list[int]) -> str:
    return "".join(map(chr, ids))


def test_a_text_file_is_one_sample(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\n\ntwo\n")
    assert read_samples(path) == [Sample(text="one\n\ntwo\n")]


def test_a_jsonl_file_may_mix_all_the_shapes(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    chat = {"messages": [{"role": "user", "content": "hi"}], "tools": [{"name": "add"}]}
    records = [{"text": "plain"}, chat, {"prompt": "q", "response": "a"}, {"instruction": "q", "output": "a"}]
    path.write_text("\n\n".join(json.dumps(record) for record in records))
    plain, talk, pair, other = read_samples(path)
    assert plain.text == "plain"
    assert (talk.messages, talk.tools) == (chat["messages"], chat["tools"])
    assert [(one["role"], one["content"]) for one in pair.messages] == [("user", "q"), ("assistant", "a")]
    assert pair == other


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", '{"text": "x"}\n{"text": ', r"a\.jsonl:2 is not JSON"),
        ("a.jsonl", '{"title": "x"}', r"a\.jsonl:1 has no text"),
        ("a.jsonl", '["x"]', r"a\.jsonl:1 has no text"),
        ("a.jsonl", '{"messages": ["x"]}', r"a\.jsonl:1 has no text"),
        ("a.txt", " \n ", "is empty"),
        ("a.csv", "x", "no calibration text"),
    ],
)
def test_a_bad_file_is_refused_with_its_place(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=said):
        read_samples(tmp_path / name)


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    for name in ("a.txt", "b.txt"):
        with pytest.raises(UsageError, match="cannot read"):
            read_samples(tmp_path / name)


def test_chats_are_rendered_with_the_models_own_template() -> None:
    chat = Sample(messages=[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}])
    tokenizer = CharTokenizer()
    assert text_of(tokenize([chat], tokenizer)[0]) == "<hi><yo>"
    tokenizer.chat_template = None
    assert text_of(tokenize([chat], tokenizer)[0]) == "hi\nyo"


def test_a_template_that_refuses_a_role_is_done_without() -> None:
    class Picky(CharTokenizer):
        def apply_chat_template(self, messages: list[dict[str, Any]], **_: Any) -> str:
            from jinja2 import TemplateError

            raise TemplateError("roles must alternate")

    assert text_of(tokenize([Sample(messages=[{"role": "tool", "content": "8"}])], Picky())[0]) == "8"


def test_a_cpu_reads_the_text_once_and_a_gpu_takes_the_tutorial_s_amount() -> None:
    assert amount(6700, device="cpu") == (13, 512)
    assert amount(300, device="cpu") == (1, 300)
    assert amount(300, device="cpu", seqlen=512) == (1, 512)  # which `pack` refuses
    assert amount(6700, device="cuda") == (128, 2048)
    assert amount(6700, device="cpu", samples=2, seqlen=64) == (2, 64)
    assert amount(6700, device="cuda", seqlen=64) == (128, 64)


def test_text_is_cut_into_blocks_of_exactly_the_asked_size() -> None:
    assert pack([[1, 2, 3], [4, 5, 6, 7]], rows=3, seqlen=2) == Blocks([[1, 2], [3, 4], [5, 6]], 7, 1)


def test_a_short_text_is_read_again_in_another_order_each_time_alike() -> None:
    sequences = [[number] * 3 for number in range(5)]
    blocks = pack(sequences, rows=10, seqlen=6)
    assert [len(row) for row in blocks.rows] == [6] * 10
    assert (blocks.distinct_tokens, blocks.rounds) == (15, 4)
    flat = [token for row in blocks.rows for token in row]
    assert flat[15:30] != flat[:15]
    assert sorted(flat[15:30]) == flat[:15]
    assert blocks == pack(sequences, rows=10, seqlen=6)


def test_a_text_shorter_than_one_block_is_refused() -> None:
    with pytest.raises(UsageError, match=r"has 3 tokens, and one sample takes 4"):
        pack([[1, 2, 3]], rows=1, seqlen=4)


def test_bundled_texts_share_no_message_and_call_the_labs_functions() -> None:
    def contents(samples: list[Sample]) -> set[str]:
        return {str(message["content"]) for sample in samples for message in sample.messages if message["content"]}

    calibration, heldout = contents(bundled_calibration()), contents(bundled_heldout())
    assert len(calibration) > 40
    assert len(heldout) > 30
    assert not calibration & heldout
    names = {tool["function"]["name"] for sample in bundled_calibration() for tool in sample.tools or []}
    assert names == {"add", "mul"}


class TestSubstitutedLoader:
    BLOCKS = Blocks([[1, 2], [3, 4]], 4, 1)

    @pytest.fixture
    def lmdeploy(self, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
        """A stand-in for LMDeploy's module, with a loader of the form 0.18 has."""
        module = types.ModuleType("lmdeploy.lite.apis.calibrate")

        def get_calib_loaders(name, tokenizer, nsamples=128, seed=0, seqlen=2048):  # type: ignore[no-untyped-def]
            raise ConnectionError("this would ask a hub")

        module.get_calib_loaders = get_calib_loaders  # type: ignore[attr-defined]
        for name in ("lmdeploy", "lmdeploy.lite", "lmdeploy.lite.apis"):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return module

    def test_it_answers_while_the_context_lasts_and_is_gone_afterwards(self, lmdeploy: Any) -> None:
        original = lmdeploy.get_calib_loaders
        with substituted_loader(self.BLOCKS):
            first, second = lmdeploy.get_calib_loaders("wikitext2", None, nsamples=2, seqlen=2)
        assert (first.tolist(), second.tolist()) == ([[1, 2]], [[3, 4]])
        assert str(first.dtype) == "torch.int64"
        assert lmdeploy.get_calib_loaders is original

    def test_it_is_gone_after_an_error_too(self, lmdeploy: Any) -> None:
        original = lmdeploy.get_calib_loaders
        with pytest.raises(ZeroDivisionError), substituted_loader(self.BLOCKS):
            raise ZeroDivisionError
        assert lmdeploy.get_calib_loaders is original

    def test_a_loader_of_another_form_is_not_touched(self, lmdeploy: Any) -> None:
        original = lmdeploy.get_calib_loaders = lambda dataset: None
        with pytest.raises(InfraError, match="in a way lab3 does not know"), substituted_loader(self.BLOCKS):
            pass
        assert lmdeploy.get_calib_loaders is original
