"""Checks on the quantized model: the command that makes it, its size on disk, and that it is one model all along."""

from __future__ import annotations

from collections.abc import Iterable

from lab3.reports.checks import Finding, against, came_up, errors_in, failed, not_shown, passed, refusal, unsure
from lab3.reports.facts import ReportFacts, SizePair
from lab3.reports.facts_commands import METHODS, LabCommand
from lab3.reports.facts_models import ModelName, last_part, same_folder, weight_bytes
from lab3.reports.model import FolderSize, LogLine, Place

GIB = 1 << 30
# Tokenizer, code and config of InternLM2.5 are 6 MB; LMDeploy leaves inputs_stats.pth and outputs_stats.pth of 60 to
# 200 MB in the folder that it makes.
BESIDE_BYTES = {False: 120 << 20, True: 420 << 20}


def quantize_command(facts: ReportFacts) -> Finding:
    """The command that quantizes to W4A16."""
    found = facts.quantizations
    if not found:
        logs = [each for each in facts.of(LogLine) if each.event in ("quantizing", "quantized")]
        if logs:
            why = "quantization is seen at work, and its command is not"
            return unsure(why, "please look for the command above the log", [each.place for each in logs[:2]])
        return not_shown(facts, "the quantization", topics=("quantize",), tools=False)
    good = [each for each in found if each.method in ("auto_awq", "auto_gptq") and each.w_bits in (None, 4)]
    if not good:
        wrong = found[0]
        told = f"{wrong.w_bits} bits" if wrong.w_bits else METHODS.get(wrong.method, wrong.method)
        return against("mistaken", f"the command quantizes to {told}", [wrong.place], expected="W4A16", actual=told)
    best = max(good, key=lambda each: (each.seen.at_prompt, -each.order))
    if (error := _error_after(facts, best)) and not _was_made(facts):
        return failed("not_achieved", "the quantization ended with an error", [best.place, error])
    if best.cut and best.w_bits is None and best.method == "auto_awq" and best.model is None:
        return unsure("the quantization's command is cut off", "its flags are not seen", [best.place])
    if (refused := refusal(best)) and not _was_made(facts):
        return unsure("the quantization's command cannot have run as it is written", refused, [best.place])
    return passed(f"`lmdeploy lite {best.method}`, {best.w_bits or 4} bits", [best.place])


def sizes(facts: ReportFacts) -> Finding:
    """The model's size on disk before and after."""
    pairs = facts.size_pairs
    full = [each for each in pairs if each.before and each.after]
    clear = [each for each in full if not (_row(each.before).doubt or _row(each.after).doubt)]
    if clear:
        pair = clear[0]
        before, after = _row(pair.before), _row(pair.after)
        return passed(f"{before.text} before and {after.text} after", [before.place, after.place])
    if full:
        rows = [_row(full[0].before), _row(full[0].after)]
        doubt = next(each.doubt for each in rows if each.doubt)
        return unsure("the sizes are shown, and may be misread", doubt, [each.place for each in rows])
    if pairs:
        row = _row(pairs[0].after or pairs[0].before)
        which = "after" if pairs[0].after else "before"
        hidden = not_shown(facts, "the other size", topics=("sizes",), tools=False)
        if hidden.status == "unknown":
            return hidden
        return unsure(
            f"only the size {which} quantization is shown: {row.text}", "the other size is not seen", [row.place]
        )
    if rows_ := facts.of(FolderSize):
        why = "sizes are listed, and none is clearly the model's"
        return unsure(why, "please say which folders are the model's", [each.place for each in rows_[:4]])
    return not_shown(facts, "the size of the model before and after", topics=("sizes",), tools=False)


def size_prediction(facts: ReportFacts) -> Finding:
    """The sizes are what the model's shape gives in 16 bits and in W4A16."""
    known = [
        (pair, row, quantized)
        for pair in facts.size_pairs
        for row, quantized in ((pair.before, False), (pair.after, True))
        if row is not None and weight_bytes(_bare(pair.model), quantized=quantized) is not None
    ]
    if not known:
        return unsure(
            "no size of a model whose shape is known is shown", places=[each.place for each in facts.of(FolderSize)[:2]]
        )
    odd: Finding | None = None
    for pair, row, quantized in known:
        found = _size_fits(pair, row, quantized=quantized)
        if found.status == "fail":
            return found
        odd = odd or (found if found.status == "unknown" else None)
    if odd is not None:
        return odd
    if not any(quantized for _, _, quantized in known):
        return unsure("the size of the quantized model is not shown", places=[row.place for _, row, _ in known])
    told = "; ".join(f"{last_part(row.name)} {row.text}" for _, row, _ in known)
    return passed(f"{told}: as the model's shape gives", [row.place for _, row, _ in known])


def served_model_made(facts: ReportFacts) -> Finding:
    """The folder that is served was made in this report."""
    server = facts.main_server()
    if server is None and (up := came_up(facts, tools=False)):
        why = "a server is seen, and which folder it serves is not"
        return unsure(why, "please look for its command", [up[0].place])
    if server is None or server.model is None:
        return not_shown(facts, "the served folder", topics=("serve",), tools=False)
    name = server.model.text
    makers = [each for each in facts.quantizations if same_folder(name, each.work_dir or "work_dir", read=True)]
    if makers:
        return passed(f"{last_part(name)} is what the quantization wrote", [makers[0].place, server.place])
    if source := next(
        (each for each in facts.quantizations if each.model and same_folder(name, each.model.text, read=True)), None
    ):
        return against(
            "contradiction", f"the quantized model is {_outputs(facts)}, and {last_part(name)} is served",
            [server.place, source.place], expected=_outputs(facts), actual=last_part(name),
        )  # fmt: skip
    listed = [each for each in facts.of(FolderSize) if same_folder(name, each.name, read=True) and each.high > 50 << 20]
    if listed:
        return passed(f"{last_part(name)} is listed with {listed[0].text}", [listed[0].place, server.place])
    moved = [
        each
        for each in facts.commands
        if each.kind == "copy" and any(same_folder(name, word, read=True) for word in each.arguments)
    ]
    if moved and facts.quantizations:
        why = f"{last_part(name)} was moved or linked"
        return unsure(why, "please look where the served folder comes from", [moved[0].place, server.place])
    if not facts.quantizations:
        hidden = not_shown(facts, "the quantization", topics=("quantize", "sizes"), tools=False)
        if hidden.status == "unknown":
            return hidden
        return unsure(
            f"the report does not show how {last_part(name)} was made", "no quantization is shown", [server.place]
        )
    told = [each for each in facts.quantizations if each.work_dir and not each.cut]
    places = [server.place, *(each.place for each in told)]
    reason = f"{last_part(name)} is served, and the quantization wrote {_outputs(facts)}"
    if not told or len(told) < len(facts.quantizations) or any(not each.partly for each in facts.hidden):
        return unsure(reason, "please look where the served folder comes from", places)
    near = _likeness(last_part(name), last_part(told[0].work_dir))
    if (
        near >= 0.9
        and server.model.same_size(told[0].model or server.model) is not False
        and (server.read or told[0].read)
    ):
        return unsure(reason, "the names are nearly the same and may be misread", places)
    return against("contradiction", reason, places, expected=_outputs(facts), actual=last_part(name))


def same_model(facts: ReportFacts) -> Finding:
    """Baseline, quantization, sizes and server are of one model."""
    named = list(_named(facts))
    told = {name.size for _, name, _ in named}
    if len(named) < 2:
        return unsure("the model is named at one place at most", places=[place for _, _, place in named])
    if len(told) == 1:
        return passed(f"all are of the {next(iter(told))} model", [place for _, _, place in named])
    steps = {step: name.size for step, name, _ in named}
    by_step = "; ".join(f"{step}: {size}" for step, size in steps.items())
    core = {step: {name.size for other, name, _ in named if other == step} for step in steps}
    made, served, before = core.get("quantization"), core.get("server"), core.get("before")
    places = [place for _, _, place in named]
    for one, two in ((before, made), (before, served), (made, served)):
        if one and two and not one & two:
            return against("contradiction", f"the figures are of different models: {by_step}", places, actual=by_step)
    return unsure(f"several models are named: {by_step}", "please say which are compared", places)


# -------------------------------------------------------------------------------------------------------------- helpers


def _named(facts: ReportFacts) -> Iterable[tuple[str, ModelName, Place]]:
    for command in facts.quantizations:
        if command.model and command.model.size:
            yield "quantization", command.model, command.place
    for at in facts.memory:
        launch = at.launch
        if launch is None or launch.model is None or not launch.model.size or at.step not in ("baseline", "w4a16_chat"):
            continue
        if launch.place.block not in facts.tools_blocks:
            yield ("before" if at.step == "baseline" else "after"), launch.model, launch.place
    server = facts.main_server()
    if server is not None and server.model and server.model.size:
        yield "server", server.model, server.place
    for pair in facts.size_pairs:
        if pair.after is not None and (name := _bare_of(pair.after.name)).size:
            yield "sizes", name, pair.after.place
            break


def _size_fits(pair: SizePair, row: FolderSize, *, quantized: bool) -> Finding:
    weights = weight_bytes(_bare(pair.model), quantized=quantized) or 0
    whole = weight_bytes(_bare(pair.model), quantized=False) or 0
    name, kind = last_part(row.name), "W4A16" if quantized else "16 bits"
    low, high = 0.985 * weights, 1.03 * weights + BESIDE_BYTES[quantized]
    expected, actual = f"{low / GIB:.2f} to {high / GIB:.2f} GiB", row.text
    if row.doubt:
        return unsure(f"{name} {row.text} may be misread", row.doubt, [row.place])
    if row.high >= low and row.low <= high:
        return passed(f"{name} {row.text}", [row.place])
    reason = f"{name} is {row.text}, and a {pair.model.size} model in {kind} has {weights / GIB:.2f} GiB of weights"
    if row.high < 0.93 * low:
        return against("impossible", reason, [row.place], expected=expected, actual=actual)
    if quantized and row.low > 0.9 * whole and pair.before is not None and row.low >= pair.before.low:
        return against(
            "contradiction",
            f"{reason}: it is not smaller",
            [row.place, pair.before.place],
            expected=expected,
            actual=actual,
        )
    return unsure(
        reason,
        "the folder may hold more than the model" if row.low > high else "please look at the size",
        [row.place],
        expected=expected,
        actual=actual,
    )


def _bare(model: ModelName) -> ModelName:
    return ModelName("", model.family, model.size)


def _bare_of(name: str) -> ModelName:
    from lab3.reports.facts_models import model_name

    return model_name(name)


def _row(row: FolderSize | None) -> FolderSize:
    if row is None:
        raise ValueError("a size that is not shown")
    return row


def _error_after(facts: ReportFacts, command: LabCommand) -> Place | None:
    return next((each.place for each in errors_in(facts, tools=False) if each.place.block == command.place.block), None)


def _was_made(facts: ReportFacts) -> bool:
    done = any(each.event == "quantized" for each in facts.of(LogLine))
    return (
        done
        or any(each.after for each in facts.size_pairs)
        or any(each.step in ("server", "w4a16_chat") for each in facts.memory)
    )


def _outputs(facts: ReportFacts) -> str:
    return ", ".join(dict.fromkeys(last_part(each.work_dir or "./work_dir") for each in facts.quantizations))


def _likeness(one: str, other: str) -> float:
    import difflib

    return difflib.SequenceMatcher(None, one.lower(), other.lower(), autojunk=False).ratio()
