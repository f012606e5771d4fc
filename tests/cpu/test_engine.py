"""LMDeploy's own PyTorch engine on the CPU device says what the model says."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("engine")]

PROMPTS = (
    "What is the capital of France?",
    "介绍一下你自己",
    "Compute (3+5)*2 step by step.",
    "Write a Python function that returns the n-th Fibonacci number.",
    "Tell me a story about a fox and a crow.",
    "List five fruits.",
    "Why is the sky blue?",
    "Translate 'good morning' into German.",
    'Return the JSON {"a": 1, "b": [true, null]} unchanged.',
    "Who wrote Hamlet?",
    "What is 12345 + 67890?",
    "Explain photosynthesis to a child.",
    "Finish the sentence: the early bird",
    "¿Cómo estás hoy?",
    "Name three programming languages and what they are good at. " * 12,
    "😀 what does this emoji mean?",
    "How many legs does a spider have?",
    "a",
    "Give me a haiku about autumn.",
    "What is a matrix?",
)
NEW_TOKENS = 20


@pytest.fixture(scope="module")
def cpu_device() -> Iterator[None]:
    from lab3 import cpu

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAB3_CPU_MEMORY", "6GiB")  # this process holds two engines and the reference
        cpu.install()
        gc.collect()  # or an engine of another module that nobody has any more would stay for ever
        gc.freeze()  # each engine has all garbage looked for, three times, and a worker holds a million objects
        patch.setattr("transformers.AutoTokenizer.from_pretrained", _tokenizer_of_folder())
        yield
        cpu.uninstall()


def _tokenizer_of_folder() -> Callable[..., Any]:
    """`AutoTokenizer.from_pretrained`, once for a folder: each of sixteen engines asks for it two or three times."""
    from transformers import AutoTokenizer

    load, loaded = AutoTokenizer.from_pretrained, {}

    def from_pretrained(folder: Any, **options: Any) -> Any:
        known = (str(folder), repr(sorted(options.items())))
        if known not in loaded:
            loaded[known] = load(folder, **options)
        return loaded[known]

    return from_pretrained


def engine(model: Path, **config: Any) -> Any:
    """An in-process pipeline: LMDeploy's engine without the HTTP server."""
    from lmdeploy import PytorchEngineConfig, pipeline

    settings = {"cache_max_entry_count": 0.05, "max_prefill_token_num": 1024, "session_len": 2048, **config}
    return pipeline(str(model), backend_config=PytorchEngineConfig(**settings), log_level="ERROR")


@pytest.fixture(scope="module")
def fp32(cpu_device: None, embedded_model: Path) -> Iterator[Any]:
    with engine(embedded_model, dtype="float32") as pipe:
        yield pipe


def answer(pipe: Any, prompts: list[str], **generation: Any) -> list[Any]:
    from lmdeploy import GenerationConfig

    config = GenerationConfig(**{"do_sample": False, "max_new_tokens": NEW_TOKENS, **generation})
    return list(pipe([[{"role": "user", "content": p}] for p in prompts], gen_config=config))


@pytest.fixture(scope="module")
def fp32_answers(fp32: Any) -> list[Any]:
    return answer(fp32, list(PROMPTS))


@pytest.fixture(scope="module")
def reference(embedded_model: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(embedded_model, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(embedded_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(embedded_model)


def likeliest(reference: Any, prompts: list[list[int]], answers: list[list[int]]) -> list[list[int]]:
    """For each token of the answers the one that `reference`, in one pass over prompt and answer, finds most likely.

    Rows are filled up behind: no token sees what comes after it.
    """
    import torch

    rows = [torch.tensor(prompt + answer) for prompt, answer in zip(prompts, answers, strict=True)]
    with torch.inference_mode():
        hidden = reference.model(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)).last_hidden_state
        return [
            reference.lm_head(row[len(prompt) - 1 : len(prompt) + len(answer) - 1]).argmax(-1).tolist()
            for row, prompt, answer in zip(hidden, prompts, answers, strict=True)
        ]


@pytest.fixture(scope="module")
def prompt_ids(tokenizer: Any) -> list[list[int]]:
    asked = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    return [tokenizer.apply_chat_template(each, add_generation_prompt=True, return_dict=False) for each in asked]


@pytest.fixture(scope="module")
def expected(fp32_answers: list[Any], reference: Any, prompt_ids: list[list[int]]) -> list[list[int]]:
    answers = [list(each.token_ids) for each in fp32_answers]
    order = sorted(range(len(PROMPTS)), key=lambda index: len(prompt_ids[index]))
    found: dict[int, list[int]] = {}
    for some in (order[:-1], order[-1:]):  # one of them is several times as long as the others
        best = likeliest(reference, [prompt_ids[index] for index in some], [answers[index] for index in some])
        found |= dict(zip(some, best, strict=True))
    return [found[index] for index in range(len(PROMPTS))]


@pytest.mark.parametrize("index", range(len(PROMPTS)))
def test_greedy_tokens_are_those_of_transformers(index: int, fp32_answers, expected, prompt_ids):
    ours = fp32_answers[index]
    assert ours.input_token_len == len(prompt_ids[index])
    assert ours.token_ids == expected[index]
    assert len(ours.token_ids) == NEW_TOKENS or ours.finish_reason == "stop"


def test_eight_at_once_give_what_they_give_one_at_a_time(fp32: Any, fp32_answers: list[Any]):
    alone = [answer(fp32, [prompt], max_new_tokens=8)[0].token_ids for prompt in PROMPTS[:8]]
    together = [r.token_ids for r in answer(fp32, list(PROMPTS[:8]))]
    assert together == [r.token_ids for r in fp32_answers[:8]]
    assert [ids[:8] for ids in together] == alone


def test_a_prompt_in_chunks_or_from_the_cache_gives_what_it_gives_whole(
    cpu_device, embedded_model: Path, fp32: Any, fp32_answers
):
    with engine(embedded_model, dtype="float32", max_prefill_token_num=64, enable_prefix_caching=True) as pipe:
        assert pipe.async_engine.engine.cache_config.max_prefill_token_num == 64
        long = PROMPTS[14]
        chunked, cached = answer(pipe, [long])[0], answer(pipe, [long])[0]
        assert pipe.async_engine.engine.scheduler.block_trie.stats.num_hit_tokens >= 128
    assert chunked.input_token_len > 128, "two chunks at least"
    assert chunked.token_ids == fp32_answers[14].token_ids
    assert cached.token_ids == fp32_answers[14].token_ids


def test_a_seed_gives_the_same_answer_again_and_another_seed_another(fp32: Any):
    def sample(seed: int) -> list[int]:
        return answer(fp32, [PROMPTS[4]], do_sample=True, temperature=1.0, top_p=0.95, random_seed=seed)[0].token_ids

    first = sample(11)
    assert sample(11) == first
    assert sample(12) != first


def test_fp32_has_no_recording(fp32: Any, fp32_answers: list[Any]):
    """Its answers are those of transformers all the same, above."""
    graphs = fp32.async_engine.engine.executor.model_agent.patched_model._graphs
    assert graphs
    assert set(graphs.values()) == {None}


def test_a_cancelled_request_frees_its_blocks(fp32: Any):
    import asyncio

    from lmdeploy import GenerationConfig

    manager = fp32.async_engine.engine.scheduler.block_manager
    free_before = manager.get_num_free_gpu_blocks()
    seen = []
    stream = fp32.stream_infer(
        [{"role": "user", "content": PROMPTS[4]}],
        gen_config=GenerationConfig(do_sample=False, max_new_tokens=512, ignore_eos=True),
    )
    for _ in range(3):
        next(stream)
        seen.append(manager.get_num_free_gpu_blocks())
    asyncio.run_coroutine_threadsafe(fp32.async_engine.stop_all_session(), fp32.internal_thread.loop).result(10)
    deadline = time.monotonic() + 10
    while manager.get_num_free_gpu_blocks() != free_before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert min(seen) < free_before, "the request must have held blocks"
    assert manager.get_num_free_gpu_blocks() == free_before


@pytest.mark.parametrize(("quant_policy", "bytes_for_a_head"), [(0, 128), (8, 64 + 4), (4, 32 + 4)])
def test_a_token_takes_the_bytes_that_it_takes_on_a_gpu(fp32: Any, quant_policy: int, bytes_for_a_head: int):
    """Layers x KV heads x 2 x (head_dim x bits / 8 + fp16 scale and zero), from LMDeploy's own plan of the pool."""
    import copy

    import torch
    from lmdeploy.messages import QuantPolicy
    from lmdeploy.pytorch.engine.cache_engine.plan import build_block_cache_plan

    agent = fp32.async_engine.engine.executor.model_agent
    cache_config, model_config = copy.copy(agent.cache_config), copy.copy(agent.model_config)
    cache_config.quant_policy, model_config.dtype = QuantPolicy(quant_policy), torch.float16
    with agent.all_context():
        plan = build_block_cache_plan(model_config, cache_config, 1, request_collector=lambda context: [])
    layers, kv_heads, keys_and_values = 30, 3, 2
    assert plan.logical_block_nbytes / cache_config.block_size == layers * kv_heads * keys_and_values * bytes_for_a_head
