"""The lab's server on the wire: the real LMDeploy, asked by the real OpenAI client."""

from __future__ import annotations

import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from openai import OpenAI

from lab3 import collect, funcall, vram
from lab3.capacity import kv_tokens
from lab3.chat import ChatResult, chat
from lab3.checks import CHECKS, judge, numbers_in
from lab3.errors import InfraError, UsageError
from lab3.evidence import Evidence
from lab3.hub import RunningServer
from lab3.models import kv_bytes_per_token, model_tensors, read_config
from lab3.quantize import quantize
from lab3.serve import ApiServer

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("servers")]

METRICS_EVERY_S = 10  # LMDeploy's api_server, `log_interval`
QUESTIONS = (
    "What is the capital of France?",
    "List five fruits.",
    "介绍一下你自己",
    "Why is the sky blue?",
    "What is 12345 + 67890?",
    "Tell me a story about a fox.",
    "Write a Python function that adds two numbers.",
    "Who wrote Hamlet?",
)
# Whatever a model of this size may know; none was left out for not being known.
FACTS = {
    "What is the capital of Germany?": "berlin",
    "List five fruits.": "banana",
    "Why is the sky blue?": "scatter",
    "What is H2O?": "hydrogen",
    "How many legs does a spider have?": "eight",
    "Name three colours of the rainbow.": "red",
    "What is the capital of Italy?": "rome",
    "Which planet is known as the red planet?": "mars",
    "What do bees make?": "honey",
    "What is the largest ocean on Earth?": "pacific",
    "Who wrote Romeo and Juliet?": "shakespeare",
    "What language is spoken in Brazil?": "portuguese",
    "What gas do plants take in from the air?": "carbon",
    "What is the opposite of hot?": "cold",
    "In which country are the pyramids of Giza?": "egypt",
    "What is frozen water called?": "ice",
    "Which animal barks?": "dog",
    "What star does the Earth orbit?": "sun",
    "How many days does a week have?": "seven",
    "What is the first month of the year?": "january",
}


def metric(server: RunningServer, name: str) -> float:
    lines = requests.get(server.base_url.removesuffix("/v1") + "/metrics", timeout=10).text.splitlines()
    return next(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"lmdeploy:{name}{{"))


def test_the_server_says_that_it_is_healthy_and_what_it_serves(quantized_server: RunningServer):
    assert requests.get(quantized_server.base_url.removesuffix("/v1") + "/health", timeout=5).status_code == 200
    client = OpenAI(base_url=quantized_server.base_url, api_key="none")
    assert [model.id for model in client.models.list()] == [quantized_server.model_name]


def test_it_listens_on_this_machine_only(quantized_server: RunningServer):
    import psutil

    main = psutil.Process(quantized_server.pid)
    port = int(quantized_server.base_url.removesuffix("/v1").rsplit(":", 1)[1])
    sockets = [
        connection.laddr
        for process in (main, *main.children(recursive=True))
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert port in {address.port for address in sockets}
    assert {address.ip for address in sockets if address.port == port} == {"127.0.0.1"}


def test_the_weights_lie_where_the_kernel_is_asked_for_huge_pages(quantized_server: RunningServer):
    """Whether it has any to give is chance: memory that others cut to pieces has none."""
    import psutil

    switch = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not switch.is_file() or "[never]" in switch.read_text():
        pytest.skip("this kernel gives nobody huge pages")
    main = psutil.Process(quantized_server.pid)
    maps = "".join(Path(f"/proc/{each.pid}/smaps").read_text() for each in [main, *main.children(recursive=True)])
    asked = re.findall(r"^Rss: +([0-9]+) kB\n(?:\w+: .*\n)*?VmFlags:.* hg\b", maps, re.M)
    assert sum(map(int, asked)) > 56 * 1024  # the output layer alone


def test_the_quantized_model_answers_questions(quantized_server: RunningServer):
    """It knows 12 of the 20; one that quantization broke would know none."""

    def ask(question: str) -> ChatResult:
        return chat(question, base_url=quantized_server.base_url, temperature=0.0, max_tokens=48)

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(ask, FACTS))
    right = [word for word, result in zip(FACTS.values(), results, strict=True) if word in result.text.lower()]
    assert len(right) >= 6, [result.text for result in results]
    for result in results:
        assert result.finish_reason in ("stop", "length")
        assert result.usage is not None
        assert result.usage.prompt_tokens + result.usage.completion_tokens == result.usage.total_tokens


def test_a_streamed_answer_is_the_unstreamed_one(quantized_server: RunningServer):
    settings: dict[str, Any] = {"base_url": quantized_server.base_url, "temperature": 0.0, "max_tokens": 40}
    whole = chat(QUESTIONS[3], **settings)
    streamed = chat(QUESTIONS[3], stream=True, **settings)
    assert streamed.text == whole.text
    assert streamed.usage == whole.usage
    assert streamed.ttft_s is not None
    assert 0 < streamed.ttft_s < streamed.seconds


def test_a_conversation_goes_on_with_what_was_said(quantized_server: RunningServer):
    settings: dict[str, Any] = {"base_url": quantized_server.base_url, "temperature": 0.0, "max_tokens": 40}
    first = chat("My name is Wang Wei.", **settings)
    second = chat(first.followed_by("What is my name?"), **settings)
    assert [message["role"] for message in second.messages] == ["user", "assistant", "user", "assistant"]
    assert first.usage is not None
    assert second.usage is not None  # the model read all of it: the first question, the answer and the second question
    assert second.usage.prompt_tokens > first.usage.prompt_tokens + first.usage.completion_tokens + 5


def test_eight_questions_at_once_get_the_answers_that_they_get_alone(quantized_server: RunningServer):
    """Token by token. Texts would not do: where `max_tokens` cuts a character in two, LMDeploy's detokenizer drops all
    text of the last chunk, complete characters too, and how many tokens a chunk has depends on the server's load."""
    server = quantized_server
    client = OpenAI(base_url=server.base_url, api_key="none", max_retries=0)

    def ask(question: str) -> list[int]:
        answer = client.chat.completions.create(
            model=server.model_name,
            messages=[{"role": "user", "content": question}],
            temperature=0.0,
            max_tokens=24,
            extra_body={"return_token_ids": True},
        )
        tokens: list[int] = answer.choices[0].output_ids  # type: ignore[attr-defined]
        assert answer.usage is not None
        assert len(tokens) == answer.usage.completion_tokens
        return tokens

    alone = [ask(question) for question in QUESTIONS]
    with ThreadPoolExecutor(len(QUESTIONS)) as threads:
        together = list(threads.map(ask, QUESTIONS))
    assert together == alone


def test_a_seed_repeats_an_answer_over_the_wire(quantized_server: RunningServer):
    def sample(seed: int) -> str:
        settings: dict[str, Any] = {"temperature": 1.0, "top_p": 0.95, "max_tokens": 32}
        return chat(QUESTIONS[5], base_url=quantized_server.base_url, seed=seed, **settings).text

    assert sample(3) == sample(3) != sample(4)


def test_a_client_that_hangs_up_frees_the_cache(plain_server: RunningServer):
    client = OpenAI(base_url=plain_server.base_url, api_key="none", max_retries=0)
    stream = client.chat.completions.create(
        model=plain_server.model_name,
        messages=[{"role": "user", "content": QUESTIONS[5]}],
        max_tokens=6000,  # minutes
        stream=True,
        temperature=0.0,
        extra_body={"ignore_eos": True},
    )
    for _ in range(3):
        next(stream)
    stream.close()
    time.sleep(METRICS_EVERY_S + 1)
    assert metric(plain_server, "num_requests_running") == 0
    assert metric(plain_server, "gpu_cache_usage_perc") == 0


@pytest.mark.parametrize("style", ["tool", "environment"])
@pytest.mark.parametrize("stream", [False, True])
def test_it_adds_then_multiplies_by_its_own_choice(quantized_server: RunningServer, style: funcall.Style, stream: bool):
    run = funcall.run_tools(
        collect.TOOL_QUESTION, base_url=quantized_server.base_url, style=style, stream=stream, temperature=0.0
    )
    made = [(call.name, call.arguments, call.outcome, call.result) for call in run.calls]
    assert made == [("add", {"a": 3, "b": 5}, "ok", 8), ("mul", {"a": 8, "b": 2}, "ok", 16)]
    assert [each.tool_choice for each in run.rounds] == ["auto"] * 3
    assert run.outcome == "answered"
    assert numbers_in(run.answer) == [16]


def test_what_it_has_read_it_does_not_read_again(quantized_server: RunningServer):
    """LMDeploy's prefix caching: a round of tool calls begins with the prompt of the one before."""
    settings: dict[str, Any] = {"base_url": quantized_server.base_url, "temperature": 0.0}
    before = metric(quantized_server, "cached_tokens_total")
    first = funcall.run_tools("What is 31 + 45?", **settings)
    between = metric(quantized_server, "cached_tokens_total")
    again = funcall.run_tools("What is 31 + 45?", **settings)
    after = metric(quantized_server, "cached_tokens_total")
    assert len(first.rounds) == 2
    usage = [each.usage.prompt_tokens for each in first.rounds if each.usage is not None]
    assert between - before >= usage[0] - usage[0] % 64, "the second round's prompt begins with the first's"
    assert after - between >= sum(usage) - sum(tokens % 64 for tokens in usage) - 64
    assert (again.answer, [call.arguments for call in again.calls]) == (first.answer, [{"a": 31, "b": 45}])


@pytest.mark.parametrize("question", ["Tell me a story about a fox.", "介绍一下你自己", "What is 20 minus 4?"])
def test_it_calls_nothing_where_nothing_fits(quantized_server: RunningServer, question: str):
    settings: dict[str, Any] = {"base_url": quantized_server.base_url, "temperature": 0.0, "max_tokens": 48}
    run = funcall.run_tools(question, **settings)
    assert run.outcome == "no_call"
    assert len(run.answer) > 20
    assert "<|" not in run.answer


def test_the_lab_s_own_question_is_judged_well(quantized_server: RunningServer):
    asked = collect.ask_with_tools(quantized_server.base_url)
    assert asked.tool_choice == "auto"
    verdicts = judge(Evidence(subject="reference", model="embedded", tools=(asked,)))
    assert {v.id: v.status for v in verdicts if v.task == 2} == {c.id: "pass" for c in CHECKS if c.task == 2}


@pytest.mark.parametrize(("tool", "stream"), [(funcall.add, False), (funcall.mul, True)])
def test_a_forced_call_is_valid_json_of_the_right_function(
    quantized_server: RunningServer, tool: funcall.Tool, stream: bool
):
    run = funcall.run_tools(
        f"Use the function {tool.__name__} on 3 and 5.",
        (tool,),
        base_url=quantized_server.base_url,
        tool_choice=("required", "none"),
        stream=stream,
        temperature=0.0,
        max_tokens=128,
    )
    assert [(call.name, call.outcome) for call in run.calls[:1]] == [(tool.__name__, "ok")]
    assert run.calls[0].result == tool(**run.calls[0].arguments)
    assert run.outcome == "answered"
    assert len(run.rounds) == 2


def test_the_tools_are_in_the_prompt_that_the_model_sees(quantized_server: RunningServer):
    """LMDeploy renders the checkpoint's own template; one that ignores tools would fail in silence."""
    client = OpenAI(base_url=quantized_server.base_url, api_key="none")
    messages: Any = [{"role": "user", "content": "What is 3 + 5?"}]
    settings: Any = {"model": quantized_server.model_name, "messages": messages, "max_tokens": 1}
    without = client.chat.completions.create(**settings).usage
    tools: Any = [funcall.tool_schema(funcall.add)]
    with_tools = client.chat.completions.create(**settings, tools=tools, tool_choice="auto").usage
    assert with_tools.prompt_tokens > without.prompt_tokens + 30


@pytest.mark.parametrize(("which", "bits"), [("plain_server", 16), ("quantized_server", 4)])
def test_the_pool_holds_the_tokens_that_its_memory_allows(which: str, bits: int, request: pytest.FixtureRequest):
    """0.3 of what is free after the weights, divided by the bytes of a token."""
    server: RunningServer = request.getfixturevalue(which)
    tokens = kv_tokens(server.base_url)
    assert tokens is not None
    pool_mib = tokens * kv_bytes_per_token(read_config(Path(server.spec.model)), bits) / 2**20
    total_mib = 3072
    # Before its share LMDeploy sets aside fp16 logits of a prefill: (8192 + 2 x batch) x vocabulary x 2 bytes.
    set_aside_mib = (8192 + 2 * 32) * 49152 * 2 / 2**20
    assert 0.3 * (total_mib - set_aside_mib - 1800) < pool_mib < 0.3 * (total_mib - set_aside_mib)


def test_int4_holds_almost_four_times_the_tokens_of_fp16(plain_server: RunningServer, quantized_server: RunningServer):
    config = read_config(Path(plain_server.spec.model))
    assert kv_bytes_per_token(config, 16) / kv_bytes_per_token(config, 4) == pytest.approx(128 / 36)
    plain, quantized = kv_tokens(plain_server.base_url), kv_tokens(quantized_server.base_url)
    assert plain is not None
    assert quantized is not None
    assert quantized / plain > 128 / 36 * 0.95


@dataclass(frozen=True)
class Stopped:
    """A server that was asked, measured and stopped: what its processes were, and what was left of it right after."""

    used_mib: int
    pids: list[int]
    pids_left: list[int]
    port_free: bool


@pytest.fixture(scope="module")
def stopped_servers(embedded_model: Path, w4a16: Path) -> dict[str, Stopped]:
    """Of the plain model and the quantized one, each alone and with a KV pool of the same bytes."""
    return {"plain": _serve_and_stop(embedded_model), "w4a16": _serve_and_stop(w4a16)}


def _serve_and_stop(folder: Path) -> Stopped:
    import psutil

    from lab3.ports import reserve

    with ApiServer(folder, kv_bits=16, cache_ratio=0.3, extra_args=["--num-gpu-blocks", "64"]) as server:
        with vram.Meter(server.pid, device="cpu") as meter:
            chat(QUESTIONS[0], base_url=server.base_url, max_tokens=16, temperature=0.0)
        pids, port = server.pids, server.port
    left = [pid for pid in pids if psutil.pid_exists(pid)]
    try:
        reserve("127.0.0.1", port).close()
    except InfraError:
        return Stopped(meter.last.used_mib, pids, left, port_free=False)
    return Stopped(meter.last.used_mib, pids, left, port_free=True)


def test_w4a16_takes_less_process_memory_by_half_of_the_saved_weights(
    stopped_servers: dict[str, Stopped], embedded_model: Path, w4a16: Path
):
    """With KV pools of the same bytes, so that nothing but the weights can make the difference."""
    saved = sum(t.size_bytes for t in model_tensors(embedded_model)) - sum(t.size_bytes for t in model_tensors(w4a16))
    assert stopped_servers["plain"].used_mib - stopped_servers["w4a16"].used_mib >= saved / 2**20 / 2


@pytest.mark.parametrize("which", ["plain", "w4a16"])
def test_a_stopped_server_leaves_no_process_and_no_port(stopped_servers: dict[str, Stopped], which: str):
    stopped = stopped_servers[which]
    assert len(stopped.pids) >= 2
    assert not stopped.pids_left
    assert stopped.port_free


def test_an_internlm2_folder_is_quantized_and_served_like_any_other(internlm2_tokenizer: bytes, tmp_path: Path):
    """No flag more, and none of the checkpoint's code is run."""
    from tests import internlm2_folder

    source = internlm2_folder.write(tmp_path / "internlm2_5-tiny", internlm2_tokenizer)
    quantized = quantize(source, tmp_path / "w4a16", group_size=64, samples=2, seqlen=64, quality=False)
    assert quantized.weight_bytes_after == quantized.predicted_weight_bytes
    with ApiServer(quantized.out, kv_bits=4, cache_ratio=0.2) as server:
        client = OpenAI(base_url=server.base_url, api_key="none", max_retries=0)
        reply = client.chat.completions.create(
            model=server.model_name,
            messages=[{"role": "user", "content": "你好"}],
            max_tokens=8,
            extra_body={"ignore_eos": True},  # random weights may end at any token
        )
        assert reply.usage is not None
        assert reply.usage.completion_tokens == 8
    assert not (source / "ran").exists()


def test_a_model_whose_template_hides_tools_is_not_served_with_a_tool_parser(embedded_model: Path, tmp_path: Path):
    folder = tmp_path / "hides"
    shutil.copytree(embedded_model, folder)
    (folder / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    with pytest.raises(UsageError, match="does not show tools"), ApiServer(folder):
        pass
