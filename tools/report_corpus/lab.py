"""What the lab's programs print, with figures that can be true: memory, sizes, tables, logs, completions."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from openai.types.chat import ChatCompletion

OLD, NEW = (1041, 34), (1552, 168)  # MiB taken before and after the cache, by LMDeploy 0.6 and 0.18 (see DESIGN.md)
WEIGHTS = {"1_8b": 3603, "1_8b-4bit": 1471, "7b": 14758, "7b-4bit": 4904}  # MiB on the card
GIB = 1 << 30
SIZES = {"1_8b": 3_781_770_388, "1_8b-4bit": 1_570_551_421, "7b": 15_480_600_000, "7b-4bit": 5_200_300_000}  # bytes


def used_mib(total: int, model: str, ratio: float = 0.8, *, era: tuple[int, int] = OLD) -> int:
    """What a server of `model` holds on a card of `total` MiB with `--cache-max-entry-count` `ratio`."""
    before, after = era
    weights = WEIGHTS[model]
    return round(before + weights + ratio * (total - before - weights) + after)


def percent(used: int, total: int) -> str:
    return f"{100 * used / total:.2f}%"


# --- nvidia-smi -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A card's rows of nvidia-smi's table. `process` is what its process holds; None: what is used, less 8 MiB."""

    name: str
    used: int
    total: int
    watts: str = "68W / 400W"
    load: int = 0
    process: int | None = None
    program: str = "/opt/conda/bin/python"


@dataclass(frozen=True, kw_only=True)
class Driver:
    version: str
    cuda: str
    widths: tuple[int, int, int]


DRIVER_470 = Driver(version="470.82.01", cuda="11.4", widths=(31, 22, 22))
DRIVER_535 = Driver(version="535.129.03", cuda="12.2", widths=(41, 22, 22))
DRIVER_550 = Driver(version="550.90.07", cuda="12.4", widths=(41, 24, 22))


def nvidia_smi(gpus: Sequence[Gpu], driver: Driver = DRIVER_535, *, moment: int = 0) -> str:
    """nvidia-smi's table in the layout of `driver`. `moment` decides over the time, temperatures and processes."""
    when = f"Wed Nov 27 {8 + moment % 14:02d}:{moment % 59:02d}:{moment % 57:02d} 2024"
    widths = driver.widths
    inner = sum(widths) + 2

    def row(*cells: str) -> str:
        return "|" + "|".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + "|"

    def rule(fill: str, edge: str = "+", first: str = "+") -> str:
        return first + edge.join(fill * width for width in widths) + first

    head = f" NVIDIA-SMI {driver.version}"
    head = head.ljust(inner // 2 - 9) + f"Driver Version: {driver.version}"
    old = driver.widths[0] == 31
    name = " GPU  Name        Persistence-M" if old else " GPU  Name                 Persistence-M "
    fan = " Fan  Temp  Perf  Pwr:Usage/Cap" if old else " Fan  Temp   Perf          Pwr:Usage/Cap "
    memory = "Memory-Usage ".rjust(widths[1])
    lines = [
        when,
        "+" + "-" * inner + "+",
        f"|{head.ljust(inner - 20)}CUDA Version: {driver.cuda}".ljust(inner + 1) + "|",
        rule("-", first="|"),
        row(name, f" Bus-Id{'Disp.A '.rjust(widths[1] - 7)}", " Volatile Uncorr. ECC"),
        row(fan, memory, " GPU-Util  Compute M. "),
        row("", "", "               MIG M. "),
        rule("=", first="|"),
    ]
    for number, gpu in enumerate(gpus):
        named = f"{number:4d}  {gpu.name}".ljust(widths[0] - 6) + "  On  "
        power = f" N/A   {38 + number + moment % 9}C    P0".ljust(widths[0] - len(gpu.watts) - 1) + gpu.watts + " "
        load = f"{gpu.load}%".rjust(8) + "Default ".rjust(14)
        lines += [
            row(
                named, f" 00000000:{(number + 1) * 16:02X}:00.0".ljust(widths[1] - 4) + "Off ", "                    0 "
            ),
            row(power, f"{gpu.used}MiB / {gpu.total}MiB ".rjust(widths[1]), load),
            row("", "", "             Disabled "),
            rule("-"),
        ]
    lines += [
        "",
        "+" + "-" * inner + "+",
        "| Processes:".ljust(inner + 1) + "|",
        "|  GPU   GI   CI        PID   Type   Process name".ljust(inner - 11) + "GPU Memory  |",
        "|        ID   ID".ljust(inner - 11) + "Usage       |",
        "|" + "=" * inner + "|",
    ]
    for number, gpu in enumerate(gpus):
        if gpu.used > 1000:
            held = gpu.process if gpu.process is not None else gpu.used - 8
            left = f"|  {number:3d}   N/A  N/A  {1870 + moment % 30011 + 11 * number:9d}      C   {gpu.program}"
            lines.append(left.ljust(inner - 12) + f"{held}MiB".rjust(11) + "  |")
    return "\n".join([*lines, "+" + "-" * inner + "+", ""])


# --- LMDeploy ---------------------------------------------------------------------------------------------------------

_GREEN, _BOLD, _YELLOW, _CYAN, _OFF = "\x1b[32m", "\x1b[1m", "\x1b[1;33m", "\x1b[36m", "\x1b[0m"


def quantizing(layers: int = 24, *, shown: int = 2, dataset: str = "ptb", gpu_gb: float = 2.25, moment: int = 0) -> str:
    """auto_awq at work; the middle layers are left out, as by a student who scrolled.

    `moment` decides over how long things take.
    """
    speed = 1.2 + moment % 170 / 100
    some = [*range(shown)]
    moves = "".join(f"Move model.layers.{number} to CPU.\n" for number in some)
    passes = "".join(
        f"model.layers.{n}, samples: 128, max gpu memory: {gpu_gb + 0.31 * (n > 0):.2f} GB\n" for n in some
    )
    return (
        f"Loading checkpoint shards: 100%|{'█' * 20}| 2/2 [00:{2 * speed:02.0f}<00:00,  {speed:.2f}s/it]\n"
        f"Move model.tok_embeddings to GPU.\n{moves}"
        f"Move model.norm to GPU.\nMove output to CPU.\nLoading calibrate dataset {dataset}...\n{passes}"
        f"model.layers.{layers - 1}, samples: 128, max gpu memory: {gpu_gb + 0.31:.2f} GB\n"
        f"model.layers.{layers - 2}.feed_forward.w2 weight packed.\n"
        f"model.layers.{layers - 1}.attention.wqkv weight packed.\n"
        f"model.layers.{layers - 1}.feed_forward.w2 weight packed.\n"
    )


def serving(
    port: int, *, pid: int = 4121, host: str = "0.0.0.0", hints: int = 3, requests: int = 0, new: bool = False
) -> str:
    """api_server's start, until it listens."""
    warning = (
        "[TM][WARNING] [LlamaTritonModel] `max_context_token_num` is not set, default to 32768.\n"
        if new
        else "[WARNING] gemm_config.in is not found; using default GEMM algo\n"
    )
    hint = f"HINT:    Please open {_YELLOW}http://{host}:{port}{_OFF} in a browser for detailed api usage!!!\n"
    info = f"{_GREEN}INFO{_OFF}:     "
    asked = f'{info}127.0.0.1:4{pid} - "{_BOLD}POST /v1/chat/completions HTTP/1.1{_OFF}" {_GREEN}200 OK{_OFF}\n'
    return (
        f"{warning}{hint * hints}{info}Started server process [{_CYAN}{pid}{_OFF}]\n"
        f"{info}Waiting for application startup.\n"
        f"{info}Application startup complete.\n"
        f"{info}Uvicorn running on {_BOLD}http://{host}:{port}{_OFF} (Press CTRL+C to quit)\n{asked * requests}"
    )


def chatting(
    model: str, turns: Sequence[tuple[str, str]], *, ratio: float = 0.8, bits: int = 0, awq: bool = False
) -> str:
    """`lmdeploy chat` of 0.6, waiting for the next line."""
    form = "'awq'" if awq else "None"
    head = (
        "chat_template_config:\nChatTemplateConfig(model_name='internlm2', system=None, meta_instruction=None)\n"
        "engine_cfg:\n"
        f"TurbomindEngineConfig(model_name='{model}', model_format={form}, tp=1, session_len=32768, max_batch_size=1, "
        f"cache_max_entry_count={ratio}, cache_block_seq_len=64, enable_prefix_caching=False, quant_policy={bits}, "
        "rope_scaling_factor=0.0, use_logn_attn=False, download_dir=None, revision=None)\n"
        "[WARNING] gemm_config.in is not found; using default GEMM algo\nsession 1\n\n"
    )
    ask = "double enter to end input >>> "
    said = "".join(
        f"{ask}{question}\n\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}\n\n"
        for question, answer in turns
    )
    return f"{head}{said}{ask}"


# --- completions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Round:
    """A printed completion of a script. `usage` is prompt, completion, total; `result` is printed after it."""

    content: str
    usage: tuple[int, int, int]
    call: tuple[str, dict[str, float]] | None = None
    result: str = ""
    model: str = "/root/models/internlm2_5-1_8b-chat-w4a16-4bit"
    created: int = 1732700000
    id: str = "1"

    @property
    def figures(self) -> list[str]:
        prompt, completion, total = self.usage
        told = [f"tokens {prompt}+{completion}={total}"]
        if self.call:
            told.append(call_text(*self.call))
        return [*told, *([f"printed {self.result}"] if self.result else [])]


def call_text(name: str, arguments: dict[str, float]) -> str:
    return f"call {name}{json.dumps(arguments, sort_keys=True)}"


@dataclass
class Script:
    """The output of a student's script: printed completions and results."""

    rounds: list[Round] = field(default_factory=list)
    old: bool = True  # openai of 2024

    def output(self) -> str:
        return "".join(
            f"{printed(each, old=self.old)}\n{each.result and each.result + chr(10)}" for each in self.rounds
        )


def completion(round_: Round) -> ChatCompletion:
    name, arguments = round_.call or ("", {})
    calls = [
        {
            "id": str(int(round_.id) - 1),
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments)},
        }
    ]
    message = {"role": "assistant", "content": round_.content, "tool_calls": calls if round_.call else None}
    prompt, completed, total = round_.usage
    return ChatCompletion.model_validate(
        {
            "id": round_.id,
            "object": "chat.completion",
            "created": round_.created,
            "model": round_.model,
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "tool_calls" if round_.call else "stop",
                    "message": message,
                    "logprobs": None,
                }
            ],
            "usage": {"prompt_tokens": prompt, "completion_tokens": completed, "total_tokens": total},
        }
    )


def printed(round_: Round, *, old: bool = True) -> str:
    """As Python prints openai's object; of 2024, without the fields and names that came later."""
    text = repr(completion(round_))
    if not old:
        return text
    later = r", (?:annotations|audio|metadata|moderation|completion_tokens_details|prompt_tokens_details)=None"
    return re.sub(later, "", text).replace("MessageFunctionToolCall", "MessageToolCall")
