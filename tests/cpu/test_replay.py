"""Decoding steps that are replayed in one call give, in every bit, what their operators give one by one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.cpu.test_engine import PROMPTS, answer, cpu_device, engine, tokenizer
from tests.cpu.test_layouts import agreement, write_layout

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("engine")]
__all__ = ["cpu_device", "tokenizer"]


def runner(pipe: Any) -> Any:
    return pipe.async_engine.engine.executor.model_agent.patched_model


def said(pipe: Any, prompts: tuple[str, ...]) -> list[list[int]]:
    return [list(response.token_ids) for response in answer(pipe, list(prompts), ignore_eos=True)]


def one_by_one(patch: pytest.MonkeyPatch) -> None:
    from lab3.cpu.graph import CpuGraphRunner

    patch.setattr(CpuGraphRunner, "_decode", lambda self, step, inputs: self.model(**inputs))


@pytest.fixture(scope="module")
def int4(cpu_device: None, w4a16: Path) -> Iterator[Any]:
    with engine(w4a16, quant_policy=4, dtype="auto") as pipe:
        yield pipe


def test_every_step_has_the_bits_of_its_operators(int4: Any, monkeypatch: pytest.MonkeyPatch):
    import torch

    from lab3.cpu import graph

    compared: list[bool] = []
    run = graph._Graph.run

    def both(self: Any, step: Any, inputs: dict[str, Any]) -> Any:
        replayed = run(self, step, inputs)
        compared.append(torch.equal(runner(int4).model(**inputs), replayed))
        return replayed

    monkeypatch.setattr(graph._Graph, "run", both)
    for prompts in (PROMPTS[:1], PROMPTS[1:6]):
        said(int4, prompts)
    assert all(compared)
    assert len(compared) > 30
    graphs = runner(int4)._graphs
    assert graphs[1].proved
    assert graphs[5].proved


def test_a_quantized_model_says_about_what_its_weights_say_dequantized(int4: Any, w4a16: Path, tokenizer: Any):
    from lab3.perplexity import load_for_evaluation

    assert agreement(int4, load_for_evaluation(w4a16), tokenizer) > 0.75  # the cache is rounded to 4 bits
    assert runner(int4)._graphs[10].proved


def _with_one_token_over(size: int, tokenizer: Any) -> str:
    """A question whose prompt has one token more than a few times `size`."""
    for more in range(size):
        text = PROMPTS[14] + "fox " * more
        messages = [{"role": "user", "content": text}]
        if len(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)) % size == 1:
            return text
    raise AssertionError("a word is always some tokens")


def test_a_prompt_in_chunks_or_from_the_cache_has_the_bits_that_it_has_whole(
    int4: Any, w4a16: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
):
    """LMDeploy's prefix caching changes no number of what the output layer gets, and no later turn's."""
    import torch
    from lmdeploy import GenerationConfig

    from lab3.cpu.graph import CpuGraphRunner

    hidden: list[torch.Tensor] = []
    run = CpuGraphRunner.__call__

    def noting(self: Any, **inputs: Any) -> Any:
        out = run(self, **inputs)
        hidden.append(out[0, -1].clone())
        return out

    monkeypatch.setattr(CpuGraphRunner, "__call__", noting)

    first = [{"role": "user", "content": _with_one_token_over(64, tokenizer)}]

    def ask(pipe: Any, messages: list[dict[str, str]]) -> torch.Tensor:
        pipe([messages], gen_config=GenerationConfig(do_sample=False, max_new_tokens=4))
        return torch.stack(hidden[-4:])  # after the prompt, and after each new token that was read

    (said,) = int4([first], gen_config=GenerationConfig(do_sample=False, max_new_tokens=80, ignore_eos=True))
    second = [*first, {"role": "assistant", "content": said.text}, {"role": "user", "content": "Go on."}]
    whole = [ask(int4, first), ask(int4, second)]
    assert len({tuple(each.tolist()) for each in torch.cat(whole)}) == 8
    caching = {"quant_policy": 4, "dtype": "auto", "enable_prefix_caching": True}
    with engine(w4a16, max_prefill_token_num=64, **caching) as pipe:
        hits = pipe.async_engine.engine.scheduler.block_trie.stats
        before = len(hidden)
        assert torch.equal(ask(pipe, first), whole[0])
        assert len(hidden) - before > 4, "the prompt was computed in chunks"
        assert hits.num_hit_tokens == 0
        (again,) = pipe([first], gen_config=GenerationConfig(do_sample=False, max_new_tokens=80, ignore_eos=True))
        assert again.token_ids == said.token_ids
        prompt = said.input_token_len - 1
        assert prompt % 64 == 0
        assert hits.num_hit_tokens == prompt
        assert torch.equal(ask(pipe, first), whole[0])
        assert torch.equal(ask(pipe, second), whole[1])
        assert hits.num_hit_tokens == 3 * prompt, "what the model said itself is computed as any other prompt"


def test_answers_do_not_depend_on_who_helps(int4: Any, monkeypatch: pytest.MonkeyPatch):
    from lab3.cpu import cores

    found = []
    with ThreadPoolExecutor(3) as pool:
        monkeypatch.setattr(cores, "_pool", lambda: pool)
        for threads in (1, 2, 4):
            monkeypatch.setattr(cores, "ALL", threads)
            found.append(said(int4, PROMPTS[2:5]))
        one_by_one(monkeypatch)
        found.append(said(int4, PROMPTS[2:5]))
    assert found[1:] == found[:-1]


@pytest.mark.parametrize("layout", ["Llama", "Qwen2", "InternLM2"])
@pytest.mark.parametrize("quant_policy", [0, 8])
def test_every_layout_is_replayed_and_says_what_transformers_say(
    cpu_device: None, embedded_model: Path, tokenizer: Any, tmp_path: Path, layout: str, quant_policy: int
):
    """Qwen2 has biases, InternLM2 other names. (One by one or replayed, the operators are the same code.)"""
    folder, model = write_layout(layout, tmp_path, embedded_model)
    with engine(folder, quant_policy=quant_policy, dtype="float16") as pipe:
        found = said(pipe, PROMPTS[:3])
        assert [graph.proved for graph in runner(pipe)._graphs.values()] == [True]
        with pytest.MonkeyPatch.context() as patch:
            one_by_one(patch)
            assert said(pipe, PROMPTS[:3]) == found
        assert agreement(pipe, model, tokenizer) > 0.9


def test_a_step_with_an_operator_that_is_not_known_is_left_as_it_is(int4: Any, monkeypatch: pytest.MonkeyPatch):
    import torch

    from lab3.cpu.between import CpuSiluAndMul

    def foreign(_: Any, x: torch.Tensor) -> torch.Tensor:
        gate, up = x.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate) * up

    monkeypatch.setattr(CpuSiluAndMul, "forward", foreign)
    runner(int4).reset()
    found = said(int4, PROMPTS[:1])
    assert runner(int4)._graphs == {1: None}
    one_by_one(monkeypatch)
    assert said(int4, PROMPTS[:1]) == found
    runner(int4).reset()


def test_recordings_that_were_not_used_for_long_are_forgotten(int4: Any, monkeypatch: pytest.MonkeyPatch):
    from lab3.cpu import graph

    monkeypatch.setattr(graph, "_MOST_SEQUENCES", 6)
    runner(int4).reset()
    for count in (1, 2, 3, 1, 4):
        said(int4, PROMPTS[:count])
    assert set(runner(int4)._graphs) == {1, 4}, "of 1, 2, 3 and 4 in this order, with 1 once more before 4"
    runner(int4).reset()


def test_what_the_operators_cannot_read_is_left_to_others(monkeypatch: pytest.MonkeyPatch):
    import torch

    from lab3.cpu import graph

    step = object()
    monkeypatch.setattr(graph._here, "step", step, raising=False)
    rows, bf16 = torch.zeros(3, 8, dtype=torch.float16), torch.zeros(8, dtype=torch.bfloat16)
    wide = torch.zeros(3, 24, dtype=torch.float16)
    assert graph.decoding(rows, rows[0]) is step
    assert graph.decoding(wide[:, 8:16].view(3, 2, 4)) is step, "rows may lie apart"
    assert graph.decoding(rows, bf16) is None
    assert graph.decoding(rows.float()) is None
    assert graph.decoding(rows, wide[:, ::3]) is None
    assert graph.decoding(rows, wide.t()) is None


class TestTogether:
    def test_who_has_not_come_when_the_work_is_done_is_not_waited_for(self, monkeypatch: pytest.MonkeyPatch):
        from lab3.cpu import cores

        came, go = [], threading.Event()
        with ThreadPoolExecutor(1) as pool:
            monkeypatch.setattr(cores, "_pool", lambda: pool)
            monkeypatch.setattr(cores, "ALL", 4)
            pool.submit(go.wait)  # the only thread has something else to do
            started = time.monotonic()
            cores.together(lambda: came.append(threading.current_thread()))
            assert came == [threading.current_thread()]
            assert time.monotonic() - started < 5
            go.set()
        assert len(came) == 1, "and it does not come later"

    def test_what_a_helper_raises_is_raised(self, monkeypatch: pytest.MonkeyPatch):
        from lab3.cpu import cores

        here, begun = threading.current_thread(), threading.Event()

        def compute() -> None:
            if threading.current_thread() is here:
                assert begun.wait(10)
                return
            begun.set()
            raise ValueError("the helper's")

        with ThreadPoolExecutor(1) as pool:
            monkeypatch.setattr(cores, "_pool", lambda: pool)
            monkeypatch.setattr(cores, "ALL", 2)
            with pytest.raises(ValueError, match="helper's"):
                cores.together(compute)
