"""InternLM2's SentencePiece tokenizer as a fast one that gives the same ids without running the checkpoint's code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab3.errors import UsageError

# InternLM2's and InternLM2.5's; the SentencePiece file has placeholders in their places.
SPECIAL = {
    92538: "<|plugin|>",
    92539: "<|interpreter|>",
    92540: "<|action_end|>",
    92541: "<|action_start|>",
    92542: "<|im_end|>",
    92543: "<|im_start|>",
}


def save_tokenizer(source: Path, out: Path, *, template: str) -> None:
    """Write `source`'s tokenizer to the folder `out` as tokenizer.json and tokenizer_config.json, with `template`."""
    from transformers import PreTrainedTokenizerFast

    config: dict[str, Any] = {}
    if (source / "tokenizer_config.json").is_file():
        config = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    told = {int(number): entry["content"] for number, entry in config.get("added_tokens_decoder", {}).items()}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=fast_tokenizer(source / "tokenizer.model", {**SPECIAL, **told}),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
        clean_up_tokenization_spaces=False,
        model_max_length=int(config.get("model_max_length") or 1e30),
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(out)


def fast_tokenizer(model_file: Path, special: Mapping[int, str]) -> Any:
    """A `tokenizers.Tokenizer` with the ids of the SentencePiece BPE model `model_file`.

    `special` are tokens by id that take the place of the file's, and that are found in a text before all else. A text
    begins with `<s>` when special tokens are asked for. Raises UsageError for a file that is no such model.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    pieces = _pieces(model_file)
    if too_high := [number for number in special if number >= len(pieces)]:
        raise UsageError(
            f"{model_file} has {len(pieces)} pieces, and there is a special token with id {too_high[0]}",
            why="the tokenizer is of another model",
            todo="download the model again",
        )
    names = {**{number: piece.piece for number, piece in enumerate(pieces)}, **special}
    # SentencePiece writes a null character as a byte, and leaves the piece for it unused.
    names = {number: f"<unused {number}>" if name == "\0" else name for number, name in names.items()}
    vocab = {name: number for number, name in names.items()}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=_merges(pieces), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    # SentencePiece's own pieces for whole strings, which it finds first too.
    user = [names[number] for number, piece in enumerate(pieces) if piece.type == _USER and number not in special]
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in user])
    control = [piece.piece for piece in pieces if piece.type in (_UNKNOWN, _CONTROL)]
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in dict.fromkeys([*control, *special.values()])]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", vocab["<s>"])]
    )
    return tokenizer


# sentencepiece_model.proto: ModelProto.SentencePiece.Type
_NORMAL, _UNKNOWN, _CONTROL, _USER = 1, 2, 3, 4
_BPE = 2


def _pieces(model_file: Path) -> list[Any]:
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2
    model = proto.ModelProto()
    again = "download the model again"
    try:
        model.ParseFromString(model_file.read_bytes())
    except DecodeError as error:
        raise UsageError(f"{model_file} is no SentencePiece model", why="it was cut off", todo=again) from error
    rules = model.normalizer_spec
    plain = rules.name == "identity" and not (rules.add_dummy_prefix or rules.remove_extra_whitespaces)
    if model.trainer_spec.model_type != _BPE or not model.trainer_spec.byte_fallback or not plain:
        raise UsageError(
            f"{model_file} is not a tokenizer of InternLM2's kind",
            why="that is BPE with byte fallback, which leaves spaces and characters as they are",
            todo="pass the folder of an InternLM2 model",
        )
    return list(model.pieces)


def _merges(pieces: list[Any]) -> list[tuple[str, str]]:
    """Every way to put a piece together from two others, the pieces with the highest score first.

    SentencePiece merges the pair whose piece has the highest score; BPE by merges the one that stands first.
    """
    scores = {piece.piece: piece.score for piece in pieces if piece.type == _NORMAL}
    numbers = {piece.piece: number for number, piece in enumerate(pieces)}
    merges: list[tuple[str, str]] = []
    for piece in sorted(scores, key=lambda each: -scores[each]):
        halves = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [(left, right) for left, right in halves if left in scores and right in scores]
        merges += sorted(known, key=lambda pair: (numbers[pair[0]], numbers[pair[1]]))
    return merges
