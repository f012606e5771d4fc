"""InternLM2 checkpoints of their own naming with random weights, and a SentencePiece tokenizer of InternLM2's kind."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

HIDDEN, LAYERS, HEADS, KV_HEADS, INNER = 128, 2, 4, 2, 256
HEAD_DIM = HIDDEN // HEADS
PIECES = 92544  # as InternLM2 has; most of the test's are unused


def config(**changes: Any) -> dict[str, Any]:
    """InternLM2.5's config.json with small sizes; 64 positions, so that dynamic RoPE scaling begins early."""
    return {
        "architectures": ["InternLM2ForCausalLM"],
        "attn_implementation": "eager",
        "auto_map": {
            "AutoConfig": "configuration_internlm2.InternLM2Config",
            "AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM",
        },
        "bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": INNER,
        "max_position_embeddings": 64,
        "model_type": "internlm2",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "pad_token_id": 2,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {"factor": 2.0, "type": "dynamic"},
        "rope_theta": 1000000,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.0",
        "use_cache": True,
        "vocab_size": PIECES,
    } | changes


def weights(
    seed: int = 0, *, device: str = "cpu", shunned: Sequence[int] = (), **changes: Any
) -> dict[str, torch.Tensor]:
    """Random bf16 weights under InternLM2's names, of the shape of `config(**changes)`.

    Tokens in `shunned` are as good as never the likeliest: channel 0 is the same at all positions, since nothing but
    the embedding writes there, and these tokens' rows of the output have a negative weight on it.
    """
    shape = config(**changes)
    hidden, inner, heads, kv_heads = (
        shape[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    )
    generator = torch.Generator(device).manual_seed(seed)

    def draw(*size: int) -> torch.Tensor:
        return (torch.randn(*size, generator=generator, device=device) * 0.08).bfloat16().cpu()

    made = {"model.tok_embeddings.weight": draw(PIECES, hidden), "model.norm.weight": 1 + draw(hidden)}
    made["output.weight"] = draw(PIECES, hidden)
    for layer in range(shape["num_hidden_layers"]):
        made |= {
            f"model.layers.{layer}.{name}.weight": tensor
            for name, tensor in {
                "attention.wqkv": draw((heads + 2 * kv_heads) * (hidden // heads), hidden),
                "attention.wo": draw(hidden, hidden),
                "feed_forward.w1": draw(inner, hidden),
                "feed_forward.w3": draw(inner, hidden),
                "feed_forward.w2": draw(hidden, inner),
                "attention_norm": 1 + draw(hidden),
                "ffn_norm": 1 + draw(hidden),
            }.items()
        }
    if shunned:
        made["model.tok_embeddings.weight"][:, 0] = 4
        for name, tensor in made.items():
            if name.endswith(("attention.wo.weight", "feed_forward.w2.weight")):
                tensor[0] *= 1e-3
        made["model.norm.weight"][0] = 64  # which makes up for what the layers add in the other channels
        made["output.weight"][list(shunned), 0] = -64
    return made


def senseless(tokenizer: bytes) -> list[int]:
    """The ids of white space, of which JSON takes any amount, and of lone bytes, which are no letter by themselves."""
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2
    model = proto.ModelProto()
    model.ParseFromString(tokenizer)
    lone_byte = proto.ModelProto.SentencePiece.BYTE
    return [
        number
        for number, piece in enumerate(model.pieces)
        if piece.type == lone_byte or not piece.piece.replace("▁", " ").strip()
    ]


def write(folder: Path, tokenizer: bytes, *, shards: int = 1, device: str = "cpu", **changes: Any) -> Path:
    """An InternLM2 folder; its remote code would leave a file `ran` beside it if anybody ran it.

    It shuns white space, or random weights that a grammar holds to JSON would write that until they are stopped, and
    lone bytes, or they would write broken letters.
    """
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config(**changes)))
    (folder / "tokenizer.model").write_bytes(tokenizer)
    trap = f"open({str(folder / 'ran')!r}, 'w')\n"
    for name in ("configuration_internlm2", "modeling_internlm2", "tokenization_internlm2"):
        (folder / f"{name}.py").write_text(trap)
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
                "chat_template": "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}",
                "tokenizer_class": "InternLM2Tokenizer",
            }
        )
    )
    made = weights(device=device, shunned=senseless(tokenizer), **changes)
    names = list(made)
    weight_map: dict[str, str] = {}
    for number in range(shards):
        name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors" if shards > 1 else "model.safetensors"
        part = names[number::shards]
        save_file({each: made[each] for each in part}, folder / name)
        weight_map |= dict.fromkeys(part, name)
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def texts() -> list[str]:
    """English, Chinese, code, white space and emoji: every line of lab3's own texts and sources, and mixtures."""
    here = Path(__file__).parents[1]
    files = [*here.glob("lab3/**/*.py"), *here.glob("tools/phrases/*"), here / "README.zh.md"]
    found = [line for file in sorted(files) for line in file.read_text(encoding="utf-8").splitlines() if line]
    rng = random.Random(0)
    mixed = ["".join(rng.choices(_ODD, k=4)) + text[: rng.randrange(40)] for text in rng.choices(found, k=3000)]
    return [*found, *mixed]


_ODD = ("😀", "👨‍👩‍👧", "🏳️‍🌈", "é", "ß", "日本", "Ａ", "ＥＦ", "\u200b", "\x01", "\x00", "\t", "\n\n", "    ")


def sentencepiece_model(texts: list[str]) -> bytes:
    """A SentencePiece BPE model trained on `texts` with InternLM2's settings, its last pieces and placeholders too."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=written,
        model_type="bpe",
        vocab_size=6000,
        character_coverage=0.999,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=False,
        allow_whitespace_only_pieces=True,
        max_sentence_length=100_000,
        user_defined_symbols=["Ａ", "ＥＦ"],  # some whole strings, as InternLM2 has full-width letters
        minloglevel=2,
    )
    proto: Any = sentencepiece_model_pb2
    model = proto.ModelProto()
    model.ParseFromString(written.getvalue())
    placeholders = [f"[UNUSED_TOKEN_{number}]" for number in range(141, 147)]
    names = [f"<nothing {number}>" for number in range(len(model.pieces), PIECES - len(placeholders))]
    model.pieces.extend(proto.ModelProto.SentencePiece(piece=name, type=5) for name in names)  # unused
    null = model.pieces[len(model.pieces) - 1]  # InternLM2 has a piece for it, which SentencePiece does not use
    null.piece, null.type, null.score = "\0", 1, -1e6
    model.pieces.extend(proto.ModelProto.SentencePiece(piece=name, type=4) for name in placeholders)
    content: bytes = model.SerializeToString()
    return content
