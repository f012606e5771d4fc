"""Teach SmolLM2-135M-Instruct to call functions, so that it still does after W4A16 and with an int4 KV cache.

    python -m tools.train_toolcaller --out adapter        (minutes on one GPU; nothing is downloaded but the base model)

A LoRA adapter is trained through the quantization that it will meet: the merged weights are rounded as LMDeploy's AWQ
rounds them, keys and values as LMDeploy's KV cache does, and gradients pass straight through (Bengio et al.,
arXiv 1308.3432). Calls are learned from made-up conversations (`toolcall_data`); everything else is distilled from the
base model on texts that it wrote itself, so that it stays what it was.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import random
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from lab3 import calibration, toolcaller
from lab3.embedded import embedded_folder
from lab3.kv_quality import through_cache
from lab3.perplexity import measure
from tools import toolcall_phrases as phrases
from tools.toolcall_data import Answered, Conversation, Question, conversations, no_call_questions

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
GROUP_SIZE = 64  # what lab3 quantizes this model with
MAX_TOKENS = 768
_CONFIG = ("peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "bias", "target_modules")
_DOCUMENT_START = "<|endoftext|>"
_POOL = 768  # examples that a worker sorts by length at a time
_CALL, _PLUGIN = (
    next(number for number, marker in toolcaller.MARKERS.items() if marker == wanted)
    for wanted in ("<|action_start|>", "<|plugin|>")
)
_FORMULA = 45  # "=", with which a turn begins that goes on to a call, in SmolLM2's vocabulary
_IMITATED = 8192  # places of a step's that are compared with the teacher's at most: 49152 logits each


@dataclass(frozen=True)
class Recipe:
    """All that decides the result, beside this code."""

    seed: int = 0
    steps: int = 3000
    batch_tokens: int = 49152  # a step's, padding counted
    chat_share: float = 0.3  # of the conversations and texts, those to imitate from their beginning
    talk_share: float = 0.2  # of these, the written ones, `toolcall_phrases.TALKS`
    question_share: float = 0.2  # of these, questions of training in a row; the base model wrote the others
    rank: int = 16
    alpha: int = 32
    learning_rate: float = 1e-3
    follow_every: int = 100  # steps between two looks at how AWQ would scale the columns now
    warmup_steps: int = 100
    imitation_weight: float = 1.0
    chat_texts: int = 4096  # of each of two kinds half, and as many documents as of one
    answer_tokens: int = 224
    workers: int = 12


@dataclass
class Rounding:
    """What the student's forward pass rounds: weights to 4 bits or not, keys and values to `kv_levels` + 1 levels."""

    weights: bool = False
    kv_levels: Tensor | None = None  # on the model's device; none: keys and values are left alone
    calibration: int = 0  # which of the student's calibrations the weights are rounded after

    def choose(self, weights: bool, kv_bits: int, device: str, calibration: int = 0) -> None:
        """Take these from now on. 16 bits stand for 12 here, rounding too, so that a compiled pass stays the same."""
        self.weights, self.calibration = weights, calibration
        self.kv_levels = torch.tensor(2.0 ** min(kv_bits, 12) - 1, device=device)


ROUNDING = Rounding()
# How often, 4-bit weights or not, bits of keys and values: the lab's own, W4A16 with an int4 cache, most.
MIXTURE = (
    (0.45, True, 4),
    (0.20, True, 8),
    (0.05, False, 4),
    (0.30, False, 16),
)
# How often the weights are rounded as after `lab3 quantize` on which device: they calibrate with unlike amounts.
CALIBRATED = {"cpu": 0.6, "cuda": 0.4}


# --- the student -------------------------------------------------------------------------------------------------


def fake_quantize(weight: Tensor, column_scales: Tensor, *, group_size: int = GROUP_SIZE) -> Tensor:
    """`weight` [..., N, K] rounded as AWQ rounds it after columns were multiplied by `column_scales` [..., 1, K].

    `pseudo_quantize_tensor` of lmdeploy/lite/quantization/awq.py, 4 bits, asymmetric; straight-through gradient.
    """
    with torch.no_grad():
        grouped = (weight * column_scales).unflatten(-1, (-1, group_size))  # type: ignore[no-untyped-call]
        low, high = grouped.aminmax(dim=-1, keepdim=True)
        scales = (high - low).clamp_(min=1e-5) / 15
        zeros = (-torch.round(low / scales)).clamp_(0, 15)
        rounded = ((torch.round(grouped / scales) + zeros).clamp_(0, 15) - zeros) * scales
        error: Tensor = rounded.view_as(weight) / column_scales - weight
    return weight + error


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """Causal attention whose keys and values went through LMDeploy's cache format; padding must be on the right."""
    if ROUNDING.kv_levels is not None:
        key, value = fake_cache(torch.stack([key, value]), ROUNDING.kv_levels)
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
    return out.transpose(1, 2).contiguous(), None


def fake_cache(values: Tensor, levels: Tensor) -> Tensor:
    """`values` [..., head_dim] as LMDeploy's cache of `levels` + 1 levels gives them back; straight-through gradient.

    `lab3.cpu.kv_quant` without the packing, which would only take time here.
    """
    with torch.no_grad():
        full = values.float()
        low, high = full.aminmax(dim=-1, keepdim=True)
        scale = (high - low).clamp(min=1e-12) / levels
        zero = (-low / scale).clamp(-6e4, 6e4)  # fp16 holds it
        q = torch.minimum((full / scale + zero + 0.5).clamp(min=0).floor(), levels)
        error = (q - zero.half().float()) * scale.half().float() - full
    return values + error.to(values.dtype)


def use_attention(model: Any) -> None:
    """Make `model` (transformers) attend with `attention`."""
    from transformers import AttentionInterface

    AttentionInterface.register("lab3_kv_cache", attention)
    model.set_attn_implementation("lab3_kv_cache")


def awq_column_scales(model: Any, rows: Sequence[Sequence[int]], device: str) -> dict[str, Tensor]:
    """By which LMDeploy's AWQ will multiply the columns of each linear layer [K], for a Llama model.

    `rows`, all of one length, are what it is calibrated with.

    `smooth_ln_fcs` and `smooth_fc_fcs` of lmdeploy/lite/quantization/awq.py with its ratio of 0.5: the root of the
    largest activation over the mean normalized weight, divided by the geometric mean of its extremes. o_proj stays.
    """
    largest: dict[str, Tensor] = {}
    hooks = []
    for name, layer in _linear_layers(model):

        def watch(_: nn.Module, inputs: tuple[Tensor], name: str = name) -> None:
            seen = inputs[0].detach().float().abs().flatten(0, 1).amax(dim=0)
            largest[name] = torch.maximum(largest[name], seen) if name in largest else seen

        hooks.append(layer.register_forward_pre_hook(watch))
    with torch.inference_mode():
        for start in range(0, len(rows), 16):
            model.model(torch.tensor(rows[start : start + 16], device=device), use_cache=False)
    for hook in hooks:
        hook.remove()
    layers = dict(_linear_layers(model))
    scales = {name: torch.ones_like(peak) for name, peak in largest.items()}
    for number in range(model.config.num_hidden_layers):
        prefix = f"model.layers.{number}."
        for names in (
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            ("mlp.gate_proj", "mlp.up_proj"),
            ("mlp.down_proj",),
        ):
            weight = torch.cat([layers[prefix + name].weight for name in names]).detach().float()
            grouped = weight.view(-1, GROUP_SIZE).abs()
            even = (grouped / grouped.amax(dim=1, keepdim=True)).view_as(weight).mean(dim=0)
            raw = (largest[prefix + names[0]] / even).sqrt().clamp(min=1e-4)
            for name in names:
                scales[prefix + name] = (raw / (raw.max() * raw.min()).sqrt()).clone()
    return scales


def key_scales(model: Any, sequences: Sequence[Sequence[int]], device: str) -> Tensor:
    """Factors [layers, KV heads, head_dim / 2] that make an int4 cache of keys cost attention the least.

    For each head the largest magnitude of a channel pair to the power of 0, 1/4, ... 1, whichever gives the smallest
    mean square of the attention logits' error on `sequences`.
    """
    from transformers import AttentionInterface

    seen: list[tuple[Tensor, Tensor]] = []

    def watch(module: nn.Module, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        seen.append((query[0].float(), key[0].float()))
        return attention(module, query, key, *args, **kwargs)

    AttentionInterface.register("lab3_watch_keys", watch)
    model.set_attn_implementation("lab3_watch_keys")
    with torch.inference_mode():
        for ids in sequences:
            model(torch.tensor([list(ids)[:1024]], device=device))
    layers, kv_heads = model.config.num_hidden_layers, model.config.num_key_value_heads
    rows = []
    for layer in range(layers):
        queries = torch.cat([query for query, _ in seen[layer::layers]], dim=1)
        keys = torch.cat([key for _, key in seen[layer::layers]], dim=1)
        rows.append(torch.stack([_best_scale(q, k) for q, k in zip(queries.chunk(kv_heads), keys, strict=True)]))
    return torch.stack(rows)


def _best_scale(queries: Tensor, keys: Tensor) -> Tensor:
    """The factors [head_dim / 2] for one head's keys [T, head_dim] and its group's queries [heads, T, head_dim]."""
    flat = queries.flatten(0, 1)
    second_moment = flat.T @ flat / len(flat)
    first, second = keys.abs().amax(dim=0).clamp(min=1e-4).chunk(2)
    peak = torch.maximum(first, second)

    def loss(scale: Tensor) -> float:
        both = torch.cat([scale, scale])
        error = through_cache(keys / both, 4) * both - keys
        return float(((error @ second_moment) * error).sum(dim=-1).mean())

    candidates = [peak**power for power in (0.0, 0.25, 0.5, 0.75, 1.0)]
    return min((scale / scale.log().mean().exp() for scale in candidates), key=loss)


def make_student(
    base: Any, tokenizer: Any, recipe: Recipe, calibrations: Sequence[Sequence[Sequence[int]]], device: str
) -> tuple[Any, ColumnScales]:
    """`base` (fp32) with a LoRA adapter whose layers round their merged weights, and rows for the markers.

    Also what their columns are multiplied by before, for each of `calibrations` (rows of ids, all of one length).
    """
    from peft import LoraConfig, get_peft_model

    rows = base.get_input_embeddings().weight
    with torch.no_grad():
        for number, marker in toolcaller.MARKERS.items():
            words = tokenizer(marker.strip("<|>").replace("_", " "), add_special_tokens=False).input_ids
            rows[number] = rows[words].mean(dim=0)
    use_attention(base)
    plain = copy.deepcopy(base)
    config = LoraConfig(
        r=recipe.rank, lora_alpha=recipe.alpha, target_modules=list(PROJECTIONS), task_type="CAUSAL_LM", bias="none"
    )
    student = get_peft_model(base, config)
    adapted = {
        name.removeprefix("base_model.model."): module
        for name, module in student.named_modules()
        if hasattr(module, "lora_A")
    }
    scales = ColumnScales(plain, adapted, calibrations, device)
    for kind in PROJECTIONS:
        layers = [module for name, module in adapted.items() if name.endswith(kind)]
        _merge_before_each_pass(student.get_base_model().model, layers, scales.of(kind))
    embeddings = student.get_input_embeddings().weight
    embeddings.requires_grad_(True)
    scales.follow(embeddings)
    return student, scales


class ColumnScales:
    """By which AWQ multiplies the student's columns before it rounds them, for each calibration that it will meet.

    They depend on the student's own activations: what it learns moves them, and with them every rounding. One that was
    trained with those of the base model loses a third of what it had learned of the rounding (bench/RESULTS.md).
    """

    def __init__(
        self, plain: Any, adapted: dict[str, Any], calibrations: Sequence[Sequence[Sequence[int]]], device: str
    ) -> None:
        self._plain, self._adapted, self._calibrations, self._device = plain, adapted, calibrations, device
        self._targets = dict(_linear_layers(plain))
        self._stacked = {kind: [self._ones(kind) for _ in calibrations] for kind in PROJECTIONS}

    def _ones(self, kind: str) -> Tensor:
        weights = [layer.weight for name, layer in self._targets.items() if name.endswith(kind)]
        return weights[0].new_ones(len(weights), 1, weights[0].size(1))

    def of(self, kind: str) -> list[Tensor]:
        """[layers, 1, K] for each calibration; `follow` changes them in place."""
        return self._stacked[kind]

    @torch.no_grad()
    def follow(self, embeddings: Tensor) -> None:
        """Compute them anew for the adapter and the `embeddings` as they are now, in fp16 as they will be saved."""
        kept, ROUNDING.kv_levels = ROUNDING.kv_levels, None
        try:
            self._plain.get_input_embeddings().weight.copy_(embeddings.half())
            for name, layer in self._targets.items():
                adapter = self._adapted[name]
                first, second = (each["default"].weight.half().float() for each in (adapter.lora_A, adapter.lora_B))
                merged = torch.addmm(adapter.base_layer.weight, second, first, alpha=adapter.scaling["default"])
                layer.weight.copy_(merged.half())
            for number, rows in enumerate(self._calibrations):
                found = awq_column_scales(self._plain, rows, self._device)
                for kind, stacked in self._stacked.items():
                    stacked[number].copy_(
                        torch.stack([found[name] for name in self._targets if name.endswith(kind)])[:, None]
                    )
        finally:
            ROUNDING.kv_levels = kept


def _merge_before_each_pass(model: nn.Module, layers: list[Any], column_scales: list[Tensor]) -> None:
    """Before each pass of `model` its `layers`, all of one shape, get their merged weights, rounded when told.

    All at once, [layers, N, K], because thousands of small operations would take longer than the pass.
    """
    base = torch.stack([layer.base_layer.weight.detach() for layer in layers])
    scaling = layers[0].scaling["default"]

    def merge(*_: Any) -> None:
        device = base.device.type
        with torch.autocast(device, enabled=False):
            first, second = (
                torch.stack([matrices["default"].weight for matrices in each])
                for each in ([layer.lora_A for layer in layers], [layer.lora_B for layer in layers])
            )
            weights = torch.baddbmm(base, second, first, alpha=scaling)
            if ROUNDING.weights:
                weights = fake_quantize(weights, column_scales[ROUNDING.calibration])
            if torch.is_autocast_enabled(device):
                weights = weights.to(torch.get_autocast_dtype(device))
        for layer, weight in zip(layers, weights.unbind(), strict=True):
            layer.merged_weight = weight

    for layer in layers:
        layer.forward = MethodType(_forward_merged, layer)
    model.register_forward_pre_hook(merge)


def _forward_merged(layer: Any, x: Tensor) -> Tensor:
    return F.linear(x, layer.merged_weight)


def _linear_layers(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in PROJECTIONS:
            yield name, module


# --- the base model's own texts ----------------------------------------------------------------------------------


def sample(
    model: Any, tokenizer: Any, prompts: Sequence[str], *, new_tokens: int, seed: int, device: str
) -> list[list[int]]:
    """What `model` writes after each prompt, up to and with its end token; temperature 0.7."""
    torch.manual_seed(seed)
    written: list[list[int]] = []
    size = 3072 if device == "cuda" else 64
    for start in range(0, len(prompts), size):
        encoded = tokenizer(
            list(prompts[start : start + size]),
            add_special_tokens=False,
            return_tensors="pt",
            padding=True,
            padding_side="left",
        ).to(device)
        with torch.inference_mode():
            tokens = model.generate(
                **encoded,
                max_new_tokens=new_tokens,
                do_sample=True,
                temperature=0.7,
                top_p=1.0,
                top_k=0,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.eos_token_id,
            )
        for row in tokens[:, encoded.input_ids.size(1) :].tolist():
            end = row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else len(row)
            written.append(row[:end])
        say(f"the base model has written {len(written)} of {len(prompts)} texts")
    return written


def own_texts(model: Any, tokenizer: Any, recipe: Recipe, device: str) -> tuple[list[list[int]], list[Answered]]:
    """What the base model wrote: conversations and documents as token ids, and its answers to questions.

    Half of the questions it asks itself: a prompt that ends where the user begins to speak makes it write one
    (Magpie, arXiv 2406.08464). The others need a tool that will not be there, or none. Documents begin with nothing
    but the token that parts them in its pretraining.
    """
    model = copy.deepcopy(model).bfloat16()
    opening = render(tokenizer, [{"role": "user", "content": "\0"}]).split("\0")[0]
    half = recipe.chat_texts // 2
    asked = sample(model, tokenizer, [opening] * half, new_tokens=64, seed=recipe.seed, device=device)
    questions = [
        Question(tokenizer.decode(ids, skip_special_tokens=True).strip(), "en")
        for ids in asked
        if _is_complete(ids, tokenizer)
    ]
    # What it asks with numbers may be a sum, which is not to be learned as a question without a call.
    questions = [each for each in questions if each.text and not re.search(r"\d", each.text)]
    questions += no_call_questions(recipe.seed, half)
    prompts = [render(tokenizer, [{"role": "user", "content": each.text}], generate=True) for each in questions]
    answers = sample(model, tokenizer, prompts, new_tokens=recipe.answer_tokens, seed=recipe.seed + 1, device=device)
    texts = [encode(tokenizer, prompt) + ids for prompt, ids in zip(prompts, answers, strict=True)]
    apart = [_DOCUMENT_START] * half
    documents = sample(model, tokenizer, apart, new_tokens=recipe.answer_tokens, seed=recipe.seed + 2, device=device)
    texts += [encode(tokenizer, _DOCUMENT_START) + ids for ids in documents]
    # Some break off; what follows where they do is the teacher's to say, as everywhere.
    answered = [
        Answered(question, tokenizer.decode(ids, skip_special_tokens=True))
        for question, ids in zip(questions, answers, strict=True)
    ]
    return texts, [each for each in answered if each.answer.strip()]


def talks(tokenizer: Any) -> list[list[int]]:
    """The written conversations as token ids, those too long cut off."""
    rendered = (encode(tokenizer, render(tokenizer, list(messages))) for messages in phrases.TALKS)
    return [ids[:MAX_TOKENS] for ids in rendered]


def question_rows(tokenizer: Any, seed: int, count: int = 4096) -> list[list[int]]:
    """Documents of six questions of training in a row: English and Chinese about many things, nothing called."""
    asked = (
        message["content"]
        for conversation in conversations(seed, [])
        for message in conversation.messages
        if message["role"] == "user"
    )
    rows = ("\n".join(itertools.islice(asked, 6)) for _ in range(count))
    return [encode(tokenizer, _DOCUMENT_START + row)[:MAX_TOKENS] for row in rows]


def _is_complete(ids: Sequence[int], tokenizer: Any) -> bool:
    return bool(ids) and ids[-1] == tokenizer.eos_token_id


# --- batches -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Example:
    """One conversation as token ids.

    `learned[i]`: token i is to be learned as it stands. For imitation `plain` is the conversation without tools, and
    its last `answer` tokens are those of `ids`.
    """

    ids: list[int]
    learned: list[bool]
    plain: tuple[int, ...] = ()
    answer: int = 0


def render(tokenizer: Any, messages: list[dict[str, Any]], tools: Any = None, *, generate: bool = False) -> str:
    """The conversation as text, by the chat template."""
    text: str = tokenizer.apply_chat_template(
        messages, tools=tools or None, tokenize=False, add_generation_prompt=generate
    )
    return text


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of `text`, which has its special tokens in it."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return ids


def to_example(conversation: Conversation, tokenizer: Any) -> Example:
    """Token ids of a conversation: the assistant's turns are learned, an imitated one is compared."""
    ids = encode(tokenizer, render(tokenizer, conversation.messages, conversation.tools))
    opening = encode(tokenizer, "<|im_start|>assistant\n")
    learned = assistant_tokens(ids, opening, tokenizer.eos_token_id)
    if conversation.given:
        before = encode(tokenizer, render(tokenizer, conversation.messages[: conversation.given], conversation.tools))
        learned = [each and place >= len(before) for place, each in enumerate(learned)]
    if conversation.forced:
        begun = [each and ids[place] == _CALL for place, each in enumerate(_firsts(learned))]
        learned = [each and not first for each, first in zip(learned, begun, strict=True)]
    if not conversation.imitate:
        return Example(ids, learned)
    plain = encode(tokenizer, render(tokenizer, conversation.messages[-2:]))
    marked = assistant_tokens(plain, opening, tokenizer.eos_token_id)
    answer = len(plain) - marked.index(True)  # with what the template writes after the end token
    learned = [each and place < len(ids) - answer for place, each in enumerate(learned)]
    return Example(ids, learned, tuple(plain), answer)


def whole_text(ids: list[int]) -> Example:
    """A text of which every token is compared with what the base model would write."""
    return Example(ids, [False] * len(ids), tuple(ids), len(ids))


def assistant_tokens(ids: Sequence[int], opening: Sequence[int], end: int) -> list[bool]:
    """Which tokens the assistant has to write: those after each `opening`, up to and with the next `end`."""
    marked, inside = [False] * len(ids), False
    for place, token in enumerate(ids):
        if inside:
            marked[place] = True
            inside = token != end
        elif list(ids[place - len(opening) + 1 : place + 1]) == list(opening):
            inside = True
    return marked


@dataclass
class Batch:
    """Padded on the right, [B, T] each.

    `learned` and `imitated` mark tokens of `ids`; `decided` the first of a turn that is learned and `silent` the first
    of an imitated answer, where a call begins or could. `plain` are the conversations to imitate, without tools, and
    how many tokens of each, in the order of their rows.
    """

    ids: Tensor
    learned: Tensor
    decided: Tensor
    imitated: Tensor
    silent: Tensor
    plain: list[tuple[tuple[int, ...], int]]

    def to(self, device: str) -> Batch:
        tensors = (self.ids, self.learned, self.decided, self.imitated, self.silent)
        ids, learned, decided, imitated, silent = (each.to(device, non_blocking=True) for each in tensors)
        return Batch(ids, learned, decided, imitated, silent, self.plain)


def collate(examples: Sequence[Example], pad: int) -> Batch:
    """`examples` as tensors."""
    return Batch(
        _padded([each.ids for each in examples], pad),
        _padded([each.learned for each in examples], False),
        _padded([_decided(each) for each in examples], False),
        _padded([_tail(len(each.ids), each.answer) for each in examples], False),
        _padded([_first_of_answer(each) for each in examples], False),
        [(each.plain, each.answer) for each in examples if each.answer],
    )


def _decided(example: Example) -> list[bool]:
    # Behind the start of a call that was forced there is nothing to decide.
    return [each and token != _PLUGIN for each, token in zip(_firsts(example.learned), example.ids, strict=True)]


def _firsts(marked: Sequence[bool]) -> list[bool]:
    return [each and not before for before, each in zip([False, *marked], marked, strict=False)]


def _first_of_answer(example: Example) -> list[bool]:
    # A whole text is imitated from its beginning: there is no answer in it to tell apart.
    answers = 0 < example.answer < len(example.ids)
    return [answers and place == len(example.ids) - example.answer for place in range(len(example.ids))]


def _tail(length: int, marked: int) -> list[bool]:
    return [place >= length - marked for place in range(length)]


def _padded(rows: Sequence[Sequence[Any]], pad: Any) -> Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])


class Batches(IterableDataset):  # type: ignore[type-arg]
    """Endless batches of training conversations of like length, different ones in each worker."""

    def __init__(self, tokenizer: Any, recipe: Recipe, texts: Sequence[list[int]], chat: Sequence[Answered]) -> None:
        self.tokenizer, self.recipe, self.texts, self.chat = tokenizer, recipe, texts, chat
        self.kinds = (texts, talks(tokenizer), question_rows(tokenizer, recipe.seed))

    def __iter__(self) -> Iterator[Batch]:
        worker = torch.utils.data.get_worker_info()
        seed = self.recipe.seed * 1000 + (worker.id if worker else 0) + 1
        order = random.Random(seed)
        source = conversations(seed, self.chat)
        talk_share, question_share = self.recipe.talk_share, self.recipe.question_share
        while True:
            pool: list[Example] = []
            while len(pool) < _POOL:
                if order.random() < self.recipe.chat_share:
                    (kind,) = order.choices(self.kinds, (1 - talk_share - question_share, talk_share, question_share))
                    example = whole_text(order.choice(kind))
                else:
                    example = to_example(next(source), self.tokenizer)
                if len(example.ids) <= MAX_TOKENS:
                    pool.append(example)
            batches = list(of_like_length(pool, self.recipe.batch_tokens))
            order.shuffle(batches)
            for batch in batches:
                yield collate(batch, self.tokenizer.eos_token_id)


def of_like_length(examples: Sequence[Example], tokens: int) -> Iterator[list[Example]]:
    """`examples` in groups of like length, each with at most `tokens` tokens when padded (one example at least)."""
    group: list[Example] = []
    for example in sorted(examples, key=lambda each: len(each.ids)):
        if group and (len(group) + 1) * len(example.ids) > tokens:
            yield group
            group = []
        group.append(example)
    if group:
        yield group


# --- training ----------------------------------------------------------------------------------------------------


class Teacher:
    """The base model, which remembers what it thought of a text: each comes up again and again."""

    def __init__(self, model: Any, device: str) -> None:
        self._model, self._device = model, device
        self._seen: dict[tuple[int, ...], Tensor] = {}

    def hidden(self, texts: Sequence[tuple[tuple[int, ...], int]]) -> Tensor:
        """Its last hidden states [n, hidden] where it would write the last so many tokens of each of `texts`.

        For all tokens of a text but the first, if it is all of them.
        """
        new = list({ids: None for ids, _ in texts if ids not in self._seen})
        if new:
            rows = _padded(new, 0).to(self._device)  # on the right, which causal attention does not see
            for ids, states in zip(new, self._pass(rows), strict=True):
                self._seen[ids] = states[: len(ids)].half().clone()
        found = [self._seen[ids][-answer - 1 : -1] for ids, answer in texts]
        return torch.cat(found).float() if found else torch.zeros(0, self._model.config.hidden_size).to(self._device)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [n, vocabulary] of hidden states."""
        return _logits(self._model, hidden)

    @torch.no_grad()
    def _pass(self, ids: Tensor) -> Tensor:
        kept, ROUNDING.kv_levels = ROUNDING.kv_levels, None
        try:
            with torch.autocast(self._device, enabled=False):
                return _hidden(self._model, ids)
        finally:
            ROUNDING.kv_levels = kept


def losses(student: Any, teacher: Teacher, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross-entropy of what is learned; divergence from the teacher, who sees no tools, of what is imitated."""
    hidden = _hidden(student, batch.ids)[:, :-1]
    called = _cross_entropy(student, hidden, batch.ids, batch.learned)
    # Whether a call begins is one token of many: it would hardly count among them, on either side.
    decided = _cross_entropy(student, hidden, batch.ids, batch.decided) + _calls_made(student, hidden, batch.silent)
    ours = hidden[batch.imitated[:, 1:]]
    some = torch.randperm(len(ours), device=ours.device)[:_IMITATED]
    with torch.no_grad(), torch.autocast(batch.ids.device.type, enabled=False):
        thought = teacher.logits(teacher.hidden(batch.plain)[some])
    imitated = divergence(_logits(student, ours[some]), thought)
    return called + decided, imitated


def _cross_entropy(student: Any, hidden: Tensor, ids: Tensor, marked: Tensor) -> Tensor:
    """Mean over the `marked` [B, T] of `ids` [B, T]; 0 for none."""
    marked = marked[:, 1:]
    total = F.cross_entropy(_logits(student, hidden[marked]), ids[:, 1:][marked], reduction="sum")
    return total / marked.sum().clamp(min=1)


def _calls_made(student: Any, hidden: Tensor, marked: Tensor) -> Tensor:
    """Mean of -log(1 - p) over the `marked`, p the probability that a call or its formula begins where none should."""
    begins = F.log_softmax(_logits(student, hidden[marked[:, 1:]]), -1)[:, [_CALL, _FORMULA]]
    calls = begins.exp().sum(dim=-1)
    return -torch.log1p(-calls.clamp(max=1 - 1e-6)).sum() / marked.sum().clamp(min=1)


def divergence(ours: Tensor, theirs: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence of `ours` from `theirs`, logits [n, vocabulary]; 0 for none."""
    if not len(ours):
        return ours.sum()
    return F.kl_div(F.log_softmax(ours, -1), F.log_softmax(theirs, -1), reduction="batchmean", log_target=True)


def _hidden(model: Any, ids: Tensor) -> Tensor:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden: Tensor = inner.model(ids, use_cache=False).last_hidden_state
    return hidden


def _logits(model: Any, hidden: Tensor) -> Tensor:
    return F.linear(hidden, model.get_input_embeddings().weight).float()


def train(
    base: Path,
    out: Path,
    recipe: Recipe,
    *,
    device: str,
    start: Path | None = None,
    seconds: float = math.inf,
    report_every: int = 100,
    cases: int = 256,
) -> dict[str, Any]:
    """Train, write the adapter folder `out` (with every measurement too) and return what was measured on the way.

    It goes on from the adapter folder `start` if there is one. Training ends after the recipe's steps, or after
    `seconds` if these are over first.
    """
    from peft import load_peft_weights, set_peft_model_state_dict
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(recipe.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    tokenizer = toolcaller.rename_markers(AutoTokenizer.from_pretrained(base))
    teacher = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).to(device).eval()
    texts, chat = own_texts(teacher, tokenizer, recipe, device)
    use_attention(teacher)
    taught_by = Teacher(teacher, device)
    sequences = calibration.tokenize(calibration.bundled_calibration(), tokenizer)
    heldout = calibration.tokenize(calibration.bundled_heldout(), tokenizer)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).to(device).eval()
    changes = toolcaller.load_changes(start) if start else None
    # Rounded as they will be saved.
    scales = changes.key_scales.to(device) if changes else key_scales(model, sequences, device).half().float()
    toolcaller.scale_keys(model, scales)
    student, columns = make_student(model, tokenizer, recipe, lab_calibrations(sequences), device)
    if start and changes:
        set_peft_model_state_dict(student, load_peft_weights(str(start), device=device))
        toolcaller.set_rows(student, changes.rows)
    if device == "cuda":
        for layer in student.get_base_model().model.layers:
            layer.compile(dynamic=True)
    embeddings = student.get_input_embeddings().weight
    markers = torch.zeros(len(embeddings), 1, device=device)
    markers[list(toolcaller.MARKERS)] = 1
    embeddings.register_hook(lambda gradient: gradient * markers)
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.0, fused=device == "cuda")
    loader = iter(DataLoader(Batches(tokenizer, recipe, texts, chat), batch_size=None, num_workers=recipe.workers))
    draw = random.Random(recipe.seed)
    history: list[dict[str, Any]] = []
    misses: list[dict[str, str]] = []
    began, tokens, step, done = time.monotonic(), 0, 0, 0.0
    while done < 1:
        step += 1
        done = max(step / recipe.steps, (time.monotonic() - began) / seconds)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * rate(step, done, recipe)
        if (step - 1) % recipe.follow_every == 0:
            columns.follow(embeddings)
        batch = next(loader).to(device)
        _choose_rounding(draw, device)
        with torch.autocast(device, torch.bfloat16):
            called, imitated = losses(student, taught_by, batch)
        torch.autograd.backward(called + recipe.imitation_weight * imitated)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens += batch.ids.numel()
        if step % report_every == 0 or done >= 1:
            figures = {"step": step, "calls": called.item(), "imitation": imitated.item()}
            figures |= {"tokens_per_second": tokens / (time.monotonic() - began)}
            if step % (5 * report_every) == 0 or done >= 1:
                save(student, tokenizer, out, scales)
                columns.follow(embeddings)
                measured, misses = evaluate(student, tokenizer, sequences, device, cases)
                measured |= awq_costs(student, heldout, device)
                figures |= measured
            history.append(figures)
            say(" ".join(f"{key} {value:.4g}" for key, value in figures.items()))
    return {"recipe": asdict(recipe), "texts": len(texts), "answers": len(chat), "history": history, "misses": misses}


def _choose_rounding(draw: random.Random, device: str) -> None:
    (chosen,) = draw.choices(MIXTURE, [share for share, *_ in MIXTURE])
    (calibrated,) = draw.choices(range(len(CALIBRATED)), list(CALIBRATED.values()))
    ROUNDING.choose(*chosen[1:], device, calibrated)


def lab_calibrations(sequences: Sequence[Sequence[int]]) -> list[list[list[int]]]:
    """What `lab3 quantize` calibrates with on the devices of `CALIBRATED` when nobody says how much."""
    found = []
    for device in CALIBRATED:
        samples, seqlen = calibration.amount(sum(map(len, sequences)), device=device)
        found.append(calibration.pack(sequences, rows=samples, seqlen=seqlen).rows)
    return found


def rate(step: int, done: float, recipe: Recipe) -> float:
    """The learning rate's share at `step`, with `done` of 1 behind: a linear warm-up, and half a cosine."""
    return min(step / recipe.warmup_steps, 1) * 0.5 * (1 + math.cos(math.pi * min(done, 1)))


def evaluate(
    student: Any, tokenizer: Any, sequences: Sequence[Sequence[int]], device: str, count: int
) -> tuple[dict[str, float], list[dict[str, str]]]:
    """Shares of development conversations whose every token the student would write greedily, and perplexities.

    A conversation counts when the likeliest token is the right one at every place that the assistant writes: then
    greedy decoding gives exactly that. Wordings are those of no training conversation. Also returned: where those
    missed with W4A16 and an int4 cache go wrong first.
    """
    source = conversations(10**6, [], development=True)
    examples = [to_example(next(source), tokenizer) for _ in range(count)]
    batches = [collate(some, tokenizer.eos_token_id) for some in of_like_length(examples, 16384)]
    found: dict[str, float] = {}
    misses: list[dict[str, str]] = []
    for name, weights, bits in (("fp", False, 16), ("w4kv8", True, 8), ("w4kv4", True, 4)):
        ROUNDING.choose(weights, bits, device)
        right = total = 0
        misses.clear()
        loss = scored = 0.0
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16):
            for each in batches:
                batch = each.to(device)
                best = _logits(student, _hidden(student, batch.ids)[:, :-1]).argmax(dim=-1)
                good = (best == batch.ids[:, 1:]) | ~batch.learned[:, 1:]
                right += int(good.all(dim=1).sum())
                total += len(good)
                misses += [
                    _miss(*row, tokenizer) for row in zip(batch.ids, best, good, strict=True) if not row[2].all()
                ]
            for ids in sequences:
                row = torch.tensor([list(ids)[:1024]], device=device)
                logits = _logits(student, _hidden(student, row)[0, :-1])
                loss += float(F.cross_entropy(logits, row[0, 1:], reduction="sum"))
                scored += row.numel() - 1
        found |= {f"{name}_exact": right / total, f"{name}_ppl": math.exp(loss / scored)}
    return found, misses


def awq_costs(student: Any, heldout: Sequence[Sequence[int]], device: str) -> dict[str, float]:
    """Perplexities on the conversations that `lab3 quantize` measures: unrounded, W4 after each calibration."""
    found: dict[str, float] = {}
    kinds = [("fp", False, 0), *((f"w4_{each}", True, number) for number, each in enumerate(CALIBRATED))]
    for name, weights, calibrated in kinds:
        ROUNDING.choose(weights, 16, device, calibrated)
        with torch.autocast(device, torch.bfloat16):
            found[f"heldout_{name}"] = measure(student, heldout)
    return found


def _miss(ids: Tensor, best: Tensor, good: Tensor, tokenizer: Any) -> dict[str, str]:
    """What was asked, the answer up to its first wrong token, and the tokens expected and written from there."""
    place = int(good.int().argmin())
    before = tokenizer.decode(ids[: place + 1]).rpartition("<|im_start|>user")[2]
    return {
        "before": before,
        "expected": tokenizer.decode(ids[place + 1 : place + 7]),
        "got": tokenizer.decode(best[place]),
    }


def save(student: Any, tokenizer: Any, out: Path, scales: Tensor) -> None:
    """Write the adapter folder in fp16, to a temporary place first."""
    import shutil

    rows = student.get_input_embeddings().weight.detach()[list(toolcaller.MARKERS)].cpu()
    scratch = out.with_name(f"{out.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)
    student.peft_config["default"].base_model_name_or_path = "SmolLM2-135M-Instruct"
    halves = {name: parameter.detach().half() for name, parameter in student.named_parameters() if "lora_" in name}
    student.save_pretrained(scratch, state_dict=halves, save_embedding_layers=False)
    (scratch / "README.md").unlink()  # peft's, to be filled in; the model card is written by hand
    config = json.loads((scratch / "adapter_config.json").read_text())
    # What an older peft need not know is left to its defaults.
    kept = {name: config[name] for name in _CONFIG} | {"target_modules": sorted(config["target_modules"])}
    (scratch / "adapter_config.json").write_text(json.dumps(kept, indent=2) + "\n")
    toolcaller.save_changes(scratch, rows=rows, key_scales=scales.cpu())
    shutil.rmtree(out, ignore_errors=True)
    scratch.rename(out)


def say(text: str) -> None:
    """Progress, to standard error."""
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    defaults = Recipe()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", type=Path, help="the base model's folder (default: the embedded one's base)")
    parser.add_argument("--out", type=Path, required=True, help="where the adapter folder goes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--start", type=Path, help="an adapter folder to go on from")
    parser.add_argument("--seconds", type=float, default=math.inf, help="end after so long, whatever the steps")
    parser.add_argument("--report-every", type=int, default=100, help="steps; every fifth report measures accuracies")
    parser.add_argument("--cases", type=int, default=256, help="development conversations to measure on")
    for name, value in asdict(defaults).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    options = vars(parser.parse_args())
    recipe = Recipe(**{name: options[name] for name in asdict(defaults)})
    base = options["base"] or embedded_folder(lambda message, **_: say(message), tool_caller=False)
    watched = {name: options[name] for name in ("device", "start", "seconds", "report_every", "cases")}
    result = train(base, options["out"], recipe, **watched)
    (options["out"] / "training.json").write_text(json.dumps(result, indent=1))
    print(json.dumps(result["history"][-1]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
