"""The tool caller's training and merging, on a tiny Llama: what the student computes is what will be served."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers  # its models only where they are used: importing them takes seconds

from lab3 import toolcaller
from lab3.kv_quality import through_cache
from tools import train_toolcaller as training

IDS = [[1, 20, 31, 42, 53, 64, 75, 86, 97, 2], [1, 33, 44, 55, 2]]
ROWS = [IDS[0], [1, 33, 44, 55, 2, 1, 90, 81, 72, 2]]


def tiny_model() -> transformers.LlamaForCausalLM:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2) if parameter.ndim > 1 else parameter.uniform_(0.5, 1.5)
            parameter.copy_(parameter.half())  # as the embedded model's are
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor(IDS[:1])).logits


@pytest.fixture
def unrounded() -> Any:
    yield training.ROUNDING
    training.ROUNDING.weights, training.ROUNDING.kv_levels = False, None


def test_scaling_keys_and_queries_changes_no_output():
    model = tiny_model()
    before = logits(model)
    weight = model.model.layers[0].self_attn.k_proj.weight.clone()
    toolcaller.scale_keys(model, torch.rand(2, 2, 16) * 4 + 0.2)
    assert not torch.allclose(model.model.layers[0].self_attn.k_proj.weight, weight)
    assert torch.allclose(logits(model), before, atol=1e-4)


def test_key_scales_make_an_int4_cache_cost_less(unrounded: training.Rounding):
    model = tiny_model()
    with torch.no_grad():
        for layer in model.model.layers:  # an outlier channel in the keys, as real models have
            layer.self_attn.k_proj.weight[3] *= 20
    training.use_attention(model)
    exact = logits(model)

    def error() -> float:
        unrounded.choose(False, 4, "cpu")
        found = float((logits(model) - exact).square().mean())
        unrounded.kv_levels = None
        return found

    before = error()
    scales = training.key_scales(model, IDS, "cpu")
    assert scales.shape == (2, 2, 16)
    training.use_attention(model)
    toolcaller.scale_keys(model, scales)
    assert torch.allclose(logits(model), exact, atol=1e-3)
    assert error() < before / 2


@pytest.mark.parametrize("bits", [4, 8])
def test_keys_and_values_are_rounded_as_the_cache_does(bits: int):
    values = torch.randn(2, 3, 50, 64) * torch.linspace(0.1, 20, 64) + 1
    assert torch.allclose(
        training.fake_cache(values, torch.tensor(2.0**bits - 1)), through_cache(values, bits), atol=1e-6
    )
    finest = training.fake_cache(values, torch.tensor(2.0**12 - 1))
    assert (finest - values).abs().max() < 0.002 * values.abs().max()


def test_weights_are_rounded_as_lmdeploy_s_awq_rounds_them():
    awq = importlib.import_module("lmdeploy.lite.quantization.awq")
    weight, scales = torch.randn(32, 128), torch.rand(128) + 0.5
    theirs = awq.pseudo_quantize_tensor(weight * scales, 4, 64) / scales
    assert torch.equal(training.fake_quantize(weight, scales, group_size=64), weight + (theirs - weight))


def test_the_column_scales_are_those_of_lmdeploy_s_awq():
    awq = importlib.import_module("lmdeploy.lite.quantization.awq")
    model = tiny_model()
    ours = training.awq_column_scales(model, ROWS, "cpu")
    peaks: dict[str, torch.Tensor] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and name != "lm_head":

            def watch(_: Any, inputs: Any, name: str = name) -> None:
                seen = inputs[0].abs().amax(dim=(0, 1))
                peaks[name] = torch.maximum(peaks.get(name, seen), seen)

            layer.register_forward_pre_hook(watch)
    with torch.inference_mode():
        for ids in ROWS:
            model(torch.tensor([ids]))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    layers = {f"model.layers.{number}": layer for number, layer in enumerate(model.model.layers)}
    fc2fcs, norm2fcs = awq.FC_FCS_MAP["LlamaDecoderLayer"], awq.NORM_FCS_MAP["LlamaDecoderLayer"]
    for name, layer in layers.items():
        for norm, names in norm2fcs.items():
            fcs = [layer.get_submodule(each) for each in names]
            awq.smooth_ln_fcs(layer.get_submodule(norm), fcs, peaks[f"{name}.{names[0]}"], 64)
        for first, names in fc2fcs.items():
            fcs = [layer.get_submodule(each) for each in names]
            awq.smooth_fc_fcs(layer.get_submodule(first), fcs, peaks[f"{name}.{names[0]}"], 64)
    for name, scale in ours.items():
        after = dict(model.named_parameters())[f"{name}.weight"]
        if name.endswith("up_proj"):  # its rows are divided for down_proj, which rounding does not feel
            after = after * ours[name.replace("up_proj", "down_proj")][:, None]
        assert torch.allclose(after, before[f"{name}.weight"] * scale, rtol=1e-4), name


class _Words:
    """Stands for a tokenizer where only the markers' words are asked for."""

    eos_token_id = 2

    def __call__(self, text: str, **_: Any) -> Any:
        return type("Encoded", (), {"input_ids": [40 + len(word) for word in text.split()]})()


def test_what_is_merged_from_the_saved_adapter_is_what_the_student_computes(tmp_path: Path):
    base = tiny_model()
    scales = torch.rand(2, 2, 16) + 0.5
    toolcaller.scale_keys(base, scales.half().float())
    student, _ = training.make_student(base, _Words(), training.Recipe(rank=4), [ROWS], "cpu")
    _learn_something(student)
    with torch.no_grad():
        weight = student.get_input_embeddings().weight
        weight[list(toolcaller.MARKERS)] = weight[list(toolcaller.MARKERS)].half().float()
    expected = logits(student)
    assert not torch.allclose(expected, logits(tiny_model()), atol=0.1)
    training.save(student, _Words(), tmp_path / "adapter", scales)
    merged = toolcaller.merge(tiny_model(), tmp_path / "adapter")
    assert torch.allclose(logits(merged), expected, atol=2e-3)
    assert not list(tmp_path.glob("*.part"))


def test_the_columns_are_scaled_as_awq_will_scale_those_of_what_is_saved(unrounded: training.Rounding, tmp_path: Path):
    other = [[*toolcaller.MARKERS, *row[::-1]] for row in ROWS]
    student, scales = training.make_student(tiny_model(), _Words(), training.Recipe(rank=4), [ROWS, other], "cpu")
    at_first = [column.clone() for column in scales.of("down_proj")]
    _learn_something(student)
    with torch.no_grad():
        student.get_input_embeddings().weight[list(toolcaller.MARKERS)] *= 3
    unrounded.choose(True, 4, "cpu")  # which is not how AWQ looks at the model
    scales.follow(student.get_input_embeddings().weight)
    assert unrounded.kv_levels is not None
    training.save(student, _Words(), tmp_path / "adapter", torch.ones(2, 2, 16))
    merged = toolcaller.merge(tiny_model(), tmp_path / "adapter")
    for parameter in merged.parameters():
        parameter.data = parameter.data.half().float()
    for number, rows in enumerate((ROWS, other)):
        expected = training.awq_column_scales(merged, rows, "cpu")
        for kind in training.PROJECTIONS:
            wanted = torch.stack([scale[None] for name, scale in expected.items() if name.endswith(kind)])
            assert torch.allclose(scales.of(kind)[number], wanted, rtol=1e-5)
        assert not torch.allclose(scales.of("down_proj")[number], at_first[number], rtol=1e-2)
    outs = []
    for number in range(2):
        unrounded.choose(True, 16, "cpu", number)
        outs.append(logits(student))
    assert not torch.equal(*outs)


def _learn_something(student: Any) -> None:
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_" in name:
                parameter.copy_((torch.randn_like(parameter) * 0.1).half())


def test_gradients_pass_straight_through_the_rounding(unrounded: training.Rounding):
    student, _ = training.make_student(tiny_model(), _Words(), training.Recipe(rank=4), [ROWS], "cpu")
    unrounded.choose(True, 4, "cpu")
    out = student(torch.tensor(IDS[:1])).logits
    torch.autograd.backward(out.square().mean())
    # B starts at zero, so the first gradient is B's; that of A follows it.
    gradients = [parameter.grad for name, parameter in student.named_parameters() if "lora_B" in name]
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)


def test_a_student_that_has_learned_nothing_imitates_perfectly_until_it_is_rounded(unrounded: training.Rounding):
    base = tiny_model()
    training.use_attention(base)
    student, _ = training.make_student(tiny_model(), _Words(), training.Recipe(rank=4), [ROWS], "cpu")
    toolcaller.set_rows(base, student.get_input_embeddings().weight.detach()[list(toolcaller.MARKERS)])
    teacher = training.Teacher(base, "cpu")
    batch = training.collate([training.whole_text([1, 20, 31, 42, 53, 64]), training.whole_text([1, 33, 55])], 2)
    assert training.losses(student, teacher, batch)[0] == 0  # nothing to learn as it stands
    assert training.losses(student, teacher, batch)[1] < 1e-5
    unrounded.choose(True, 4, "cpu")
    assert training.losses(student, teacher, batch)[1] > 1e-3


def test_the_teacher_is_never_rounded_and_remembers_each_text(unrounded: training.Rounding):
    base = tiny_model()
    training.use_attention(base)
    with torch.no_grad():
        expected = base.model(torch.tensor([[1, 20, 31, 42, 53]])).last_hidden_state[0]
    unrounded.choose(False, 4, "cpu")
    teacher = training.Teacher(base, "cpu")
    passes = 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    base.model.register_forward_hook(count)
    long, short = (1, 20, 31, 42, 53), (1, 9)
    for _ in range(2):
        states = teacher.hidden([(long, 5), (short, 1), (long, 2)])
        assert torch.allclose(states[:4], expected[:4], atol=2e-3)  # where tokens 1 to 4 are written
        assert torch.allclose(states[5:], expected[2:4], atol=2e-3)  # tokens 3 and 4
    assert len(states) == 7
    assert passes == 1


def test_the_decision_to_call_weighs_as_much_as_an_answer_on_either_side():
    student, _ = training.make_student(tiny_model(), _Words(), training.Recipe(rank=4), [ROWS], "cpu")
    ids, nowhere = torch.tensor([[5, 6, 7, 8, 9, 2]]), torch.zeros(1, 6, dtype=torch.bool)
    with torch.no_grad():
        chances = student(ids).logits[0].log_softmax(-1)

    def loss(decided: int | None = None, silent: int | None = None) -> float:
        marks = [nowhere.clone(), nowhere.clone()]
        for marked, place in zip(marks, (decided, silent), strict=True):
            if place is not None:
                marked[0, place] = True
        batch = training.Batch(ids, nowhere, marks[0], nowhere, marks[1], [])
        return training.losses(student, training.Teacher(tiny_model(), "cpu"), batch)[0].item()

    assert loss() == 0
    assert loss(decided=3) == pytest.approx(
        -float(chances[2, 8]), rel=1e-4
    )  # the token that is there, from the one before
    call, formula = (float(chances[2, number].exp()) for number in (15, 45))  # <|action_start|> and =
    assert loss(silent=3) == pytest.approx(-math.log(1 - call - formula), rel=1e-4)


def test_the_assistant_s_tokens_are_what_follows_its_opening_up_to_the_end():
    #        system   end  open     write   end  user end open     write end
    ids = [1, 9, 9, 2, 1, 7, 8, 50, 51, 2, 1, 9, 2, 1, 7, 8, 52, 2]
    marked = training.assistant_tokens(ids, [1, 7, 8], 2)
    assert [token for token, learned in zip(ids, marked, strict=True) if learned] == [50, 51, 2, 52, 2]


def test_a_batch_marks_where_a_call_begins_or_could():
    call = training.Example([5, 6, 7, 8, 9, 2, 5, 7, 2], [False, False, True, True, True, True, False, True, True])
    silent = training.Example([5, 6, 7, 8], [False] * 4, (5, 7, 8), answer=2)
    forced = training.Example([5, 15, 12, 8, 2], [False, False, True, True, True])
    alone = training.whole_text([5, 6, 2])
    batch = training.collate([call, silent, alone, forced], 2)

    def places(marked: torch.Tensor) -> list[list[int]]:
        return [row.nonzero().flatten().tolist() for row in marked]

    assert places(batch.learned) == [[2, 3, 4, 5, 7, 8], [], [], [2, 3, 4]]
    assert places(batch.decided) == [[2, 7], [], [], []]
    assert places(batch.imitated) == [[], [2, 3], [0, 1, 2], []]
    assert places(batch.silent) == [[], [2], [], []]
    assert batch.plain == [((5, 7, 8), 2), ((5, 6, 2), 3)]


def test_what_was_there_already_and_that_a_forced_call_begins_is_not_learned(embedded_base: Path):
    from tools.toolcall_data import Conversation, _call

    tokenizer = toolcaller.rename_markers(transformers.AutoTokenizer.from_pretrained(embedded_base))
    talk = [
        {"role": "user", "content": "2 * (3 + 5)?"},
        {"role": "assistant", "content": "= 2 * (3 + 5)"},
        {"role": "environment", "content": "3+5=8"},
        _call("mul", {"a": 2, "b": 8}, "= 2 * 8"),
        {"role": "tool", "content": "16"},
        _call("add", {"a": 1, "b": 1}),
    ]

    def learned(**options: object) -> str:
        example = training.to_example(Conversation(talk, [{"name": "add"}], **options), tokenizer)
        return tokenizer.decode([token for token, each in zip(example.ids, example.learned, strict=True) if each])

    call = '<|action_start|><|plugin|>\n{"name": "%s", "parameters": {"a": %s, "b": %s}}<|action_end|><|im_end|>'
    first, second = "= 2 * 8" + call % ("mul", 2, 8), call % ("add", 1, 1)
    assert learned() == "= 2 * (3 + 5)<|im_end|>" + first + second
    assert learned(given=3) == first + second
    assert learned(given=3, forced=True) == first + second.removeprefix("<|action_start|>")
    assert tokenizer("= 2").input_ids[0] == tokenizer("= (2").input_ids[0] == training._FORMULA


def test_groups_of_like_length_stay_within_their_tokens():
    examples = [training.whole_text([1] * length) for length in (9, 2, 3, 8, 2, 40, 3)]
    groups = [[len(each.ids) for each in group] for group in training.of_like_length(examples, 12)]
    assert groups == [[2, 2, 3, 3], [8], [9], [40]]


def test_an_imitated_answer_has_the_same_tokens_with_and_without_tools(embedded_base: Path):
    from tools.toolcall_data import Conversation

    tokenizer = toolcaller.rename_markers(transformers.AutoTokenizer.from_pretrained(embedded_base))
    talk = [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello. How can I help?"}]
    example = training.to_example(Conversation(talk, [{"name": "add"}], imitate=True), tokenizer)
    assert example.ids[-example.answer :] == list(example.plain[-example.answer :])
    assert tokenizer.decode(example.plain[-example.answer :]) == "Hello. How can I help?<|im_end|>\n"
    assert not any(example.learned)
    assert len(example.ids) > len(example.plain)


def test_the_markers_are_single_special_tokens_that_only_tool_parsers_see(embedded_base: Path):
    tokenizer = toolcaller.rename_markers(transformers.AutoTokenizer.from_pretrained(embedded_base))
    call = "<|action_start|><|plugin|>\n{}<|action_end|>"
    ids = tokenizer(call, add_special_tokens=False).input_ids
    assert [ids[0], ids[1], ids[-1]] == [15, 12, 14]
    assert tokenizer.decode(ids, skip_special_tokens=False) == call
    assert tokenizer.decode(ids, skip_special_tokens=True) == "\n{}"
    assert len(tokenizer) == 49152
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")


def test_the_built_folder_is_the_embedded_base_with_the_adapter_in_it(embedded_base: Path, tmp_path: Path):
    from lab3.models import check_folder, model_tensors

    base = transformers.LlamaForCausalLM.from_pretrained(embedded_base, dtype=torch.float32)
    scales = torch.rand(30, 3, 32) + 0.5
    tokenizer = transformers.AutoTokenizer.from_pretrained(embedded_base)
    student, _ = training.make_student(base, tokenizer, training.Recipe(rank=2), [ROWS], "cpu")
    training.save(student, tokenizer, tmp_path / "adapter", scales)
    assert sum(file.stat().st_size for file in (tmp_path / "adapter").iterdir()) < 10e6 * 2 / 16 + 1e5
    toolcaller.build(embedded_base, tmp_path / "adapter", tmp_path / "built")
    facts = {(tensor.name, tensor.shape, tensor.dtype) for tensor in model_tensors(check_folder(tmp_path / "built"))}
    assert facts == {(tensor.name, tensor.shape, tensor.dtype) for tensor in model_tensors(embedded_base)}
    built = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "built", dtype=torch.float32)
    plain = transformers.LlamaForCausalLM.from_pretrained(embedded_base, dtype=torch.float32)
    assert torch.allclose(logits(built)[..., 20:], logits(plain)[..., 20:], atol=0.1)  # untrained, it adds nothing
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "built")
    assert tokenizer.convert_ids_to_tokens(15) == "<|action_start|>"


def test_lmdeploy_s_prompt_shows_the_tools_and_their_results(embedded_model: Path):
    from lmdeploy.model import HFChatTemplate
    from lmdeploy.serve.openai.protocol import ChatCompletionRequest
    from lmdeploy.serve.parsers.tool_parser.tool_parser import dump_tools

    from lab3.funcall import add, tool_schema

    template = HFChatTemplate(str(embedded_model))
    request = ChatCompletionRequest(model="m", messages=[], tools=[tool_schema(add)])
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 3, "b": 5}}}
    messages = [
        {"role": "user", "content": "What is 3 + 5?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "8"},
    ]
    prompt = template.messages2prompt(messages, tools=dump_tools(request).tools)
    shown = prompt.split("<|im_start|>system name=<|plugin|>\n")[1].split("<|im_end|>")[0]
    assert json.loads(shown) == [
        {key: tool_schema(add)["function"][key] for key in ("description", "name", "parameters")}
    ]
    assert prompt.endswith(
        '<|action_start|><|plugin|>\n{"name": "add", "parameters": {"a": 3, "b": 5}}<|action_end|><|im_end|>\n'
        "<|im_start|>environment name=<|plugin|>\n8<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = template.tokenizer(prompt, add_special_tokens=False).input_ids
    assert [ids.count(number) for number in toolcaller.MARKERS] == [3, 0, 1, 1]
