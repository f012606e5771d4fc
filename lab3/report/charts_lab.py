"""The lab's charts: sizes, memory, KV capacity, perplexity, function calls. Each figure comes from the evidence."""

from __future__ import annotations

from collections.abc import Sequence

from lab3.evidence import CallFacts, Evidence, MemoryFacts, QuantizationFacts, ServerFacts, ToolFacts
from lab3.report.charts import Bar, Chart, bar_chart
from lab3.report.charts_figures import (
    Server,
    ceiling,
    change,
    figure,
    grouped,
    megabytes,
    memory_name,
    ratio_of,
    servers,
)
from lab3.report.charts_memory import Curve, Limit, memory_chart
from lab3.report.charts_sequence import Step, sequence_chart
from lab3.report.html_words import Words


def size_chart(q: QuantizationFacts, words: Words) -> Chart:
    """Weights and folder before and after, with the predicted size."""
    weights_change = change(q.weight_bytes_before, q.weight_bytes_after)
    folder_change = change(q.folder_bytes_before, q.folder_bytes_after)
    told = [
        ("weights", "before", q.weight_bytes_before, None),
        ("weights", "after", q.weight_bytes_after, q.predicted_weight_bytes),
        ("folder", "before", q.folder_bytes_before, None),
        ("folder", "after", q.folder_bytes_after, None),
    ]
    label = "{}, {}" if words.language == "en" else "{}，{}"
    return bar_chart(
        [
            Bar(label=label.format(words(what), words(when)), value=value, shown=megabytes(value), kind=when, mark=mark)
            for what, when, value, mark in told
        ],
        name="sizes",
        title=words("sizes"),
        text=words(
            "sizes_text",
            weights_before=megabytes(q.weight_bytes_before),
            weights_after=megabytes(q.weight_bytes_after),
            weights_change=weights_change,
            folder_before=megabytes(q.folder_bytes_before),
            folder_after=megabytes(q.folder_bytes_after),
            folder_change=folder_change,
            predicted=megabytes(q.predicted_weight_bytes),
        ),
        head=(words("bytes"), words("before"), words("after"), words("change"), words("predicted")),
        rows=[
            (
                words("weights"),
                grouped(q.weight_bytes_before),
                grouped(q.weight_bytes_after),
                weights_change,
                grouped(q.predicted_weight_bytes),
            ),
            (words("folder"), grouped(q.folder_bytes_before), grouped(q.folder_bytes_after), folder_change, "–"),
        ],
    )


def peak_chart(evidence: Evidence, words: Words) -> Chart | None:
    """The most memory that each server held, of the card, with what was predicted."""
    found = servers(evidence)
    if not found:
        return None
    ceilings = {each.when: ceiling(evidence, each) for each in found}
    bars = [
        Bar(
            label=_server_label(each, words),
            value=each.facts.used_mib,
            shown=f"{grouped(each.facts.used_mib)} MiB",
            kind=each.when,
            mark=limit.high if (limit := ceilings[each.when]) else None,
        )
        for each in found
    ]
    name = memory_name(evidence, words)
    return bar_chart(
        bars,
        name="memory",
        title=words("memory_before_after", memory=name),
        text=words(
            "memory_text",
            figures="; ".join(
                words("peak_of", server=words(each.when), used=grouped(each.facts.used_mib)) for each in found
            ),
            total=grouped(max(each.facts.total_mib for each in found)),
            prediction=_prediction(found, any(ceilings.values()), words),
        ),
        head=("MiB", words("moment_peak"), words("predicted"), words("card_head" if _on_gpu(found) else "budget_head")),
        rows=[
            (
                words(each.when),
                grouped(each.facts.used_mib) + _others(each.facts, words),
                _limit_text(ceilings[each.when]),
                grouped(each.facts.total_mib),
            )
            for each in found
        ],
        most=max(each.facts.total_mib for each in found),
    )


def time_charts(evidence: Evidence, words: Words) -> list[Chart]:
    """A curve for each server whose memory was recorded, all on one scale."""
    pairs = [(each, series) for each in servers(evidence) if (series := _series(evidence, each.facts)) is not None]
    if not pairs:
        return []
    last_s = max(series.points[-1][0] for _, series in pairs)
    highest = max(
        max(float(series.total_mib), *(point[1] for point in series.points), each.facts.used_mib)
        for each, series in pairs
    )
    return [_time_chart(evidence, each, series, words, last_s=last_s, highest=highest) for each, series in pairs]


def _time_chart(
    evidence: Evidence, server: Server, series: MemoryFacts, words: Words, *, last_s: float, highest: float
) -> Chart:
    limit = ceiling(evidence, server)
    moments = [(at, mib, words(f"moment_{name}")) for at, mib, name in series.points if name in _MOMENTS]
    peak_s, peak_mib, _ = max(series.points, key=lambda point: point[1])
    seconds = figure(peak_s, 1)
    return memory_chart(
        Curve(
            points=[(at, mib) for at, mib, _ in series.points],
            moments=moments,
            card_mib=series.total_mib,
            card_label=words("budget" if server.facts.engine == "cpu" else "card", mib=grouped(series.total_mib)),
            limit=Limit(low=limit.low, high=limit.high, label=words("ceiling", mib=_limit_text(limit)))
            if limit
            else None,
            before=server.when == "before",
        ),
        name=f"memory-{server.when}",
        title=words("memory_over_time", memory=memory_name(evidence, words), server=_server_label(server, words)),
        text=words(
            "memory_over_time_text",
            peak=grouped(peak_mib),
            seconds=seconds,
            moments=", ".join(f"{name} {figure(at, 1)} s" for at, _, name in moments),
        ),
        head=(words("moment"), words("seconds"), "MiB"),
        rows=[
            *((name, figure(at, 2), grouped(mib)) for at, mib, name in moments),
            (words("moment_peak"), figure(peak_s, 2), grouped(peak_mib)),
        ],
        last_s=last_s,
        highest_mib=highest,
    )


def capacity_chart(evidence: Evidence, words: Words) -> Chart | None:
    """Tokens that the quantized server's pool holds with 16, 8 and 4 bits; without a pool the bytes of a token."""
    q, server = evidence.quantization, evidence.quantized
    sizes = {bits: size for bits, size in (q.kv_bytes_per_token if q else {}).items() if bits in _POLICIES and size > 0}
    if not {"16", "4"} <= set(sizes):
        return None
    times = figure(sizes["16"] / sizes["4"], 2)
    told = server.kv_tokens if server and server.kv_tokens and str(server.kv_bits) in sizes else None
    if told is None or server is None:
        shown = {bits: (float(size), f"{grouped(size)} B") for bits, size in sizes.items()}
        text = words("bytes_text", bytes16=grouped(sizes["16"]), bytes4=grouped(sizes["4"]), times=times)
    else:
        pool = told * sizes[str(server.kv_bits)]
        counts = {bits: told if bits == str(server.kv_bits) else int(pool / size) for bits, size in sizes.items()}
        shown = {bits: (float(count), grouped(count)) for bits, count in counts.items()}
        how = words("capacity_told", tokens=grouped(told), bits=server.kv_bits)
        text = words("capacity_text", int4=grouped(counts["4"]), times=times, how=how)
    order = [bits for bits in _POLICIES if bits in sizes]
    labels = {bits: words("policy", policy=_POLICIES[bits], bits=bits) for bits in order}
    basis = {bits: _basis(bits, told, server, words) for bits in order}
    return bar_chart(
        [
            Bar(label=labels[bits], value=shown[bits][0], shown=shown[bits][1], kind=_KIND_OF_BITS[bits])
            for bits in order
        ],
        name="kv-capacity",
        title=words("capacity"),
        text=text,
        head=(words("policy_head"), words("bytes_per_token"), words("tokens"), ""),
        rows=[
            (labels[bits], grouped(sizes[bits]), shown[bits][1] if told is not None else "–", basis[bits])
            for bits in order
        ],
    )


def perplexity_chart(q: QuantizationFacts, words: Words) -> Chart | None:
    """Before, after, and with the int4 KV cache too."""
    told = [
        ("ppl_before", "before", q.perplexity_before),
        ("ppl_after", "after", q.perplexity_after),
        ("ppl_kv", "third", q.perplexity_kv_int4),
    ]
    known = [(words(name), kind, value) for name, kind, value in told if value is not None]
    if not known:
        return None
    base = q.perplexity_before
    changes = [ratio_of(base, value) if kind != "before" else "" for _, kind, value in known]
    shown = [
        figure(value, 2) + (f" ({each})" if each else "") for (_, _, value), each in zip(known, changes, strict=True)
    ]
    return bar_chart(
        [
            Bar(label=label, value=value, shown=text, kind=kind)
            for (label, kind, value), text in zip(known, shown, strict=True)
        ],
        name="perplexity",
        title=words("perplexity"),
        text=words(
            "perplexity_text",
            figures=", ".join(f"{label} {text}" for (label, _, _), text in zip(known, shown, strict=True)),
        ),
        head=(words("what"), words("perplexity_short"), words("change")),
        rows=[(label, figure(value, 4), each or "–") for (label, _, value), each in zip(known, changes, strict=True)],
    )


def call_chart(asked: ToolFacts, number: int, words: Words) -> Chart:
    """The question, each call with its result, and the answer."""
    answer = (asked.answer or asked.outcome)[:_MOST_LETTERS]
    steps = [Step(begin=_YOU, end=_MODEL, text=asked.question)]
    rows = [("1", words("asks"), asked.question)]
    for call in asked.calls:
        said = _said(call)
        good = call.outcome == "ok"
        steps.append(Step(begin=_MODEL, end=_FUNCTIONS, text=said, bad=not good))
        rows.append((str(len(rows) + 1), words("the_call"), said))
        result = str(call.result)[:_MOST_LETTERS] if good else call.outcome
        steps.append(Step(begin=_FUNCTIONS, end=_MODEL, text=result, bad=not good))
        rows.append((str(len(rows) + 1), words("the_result"), result))
    steps.append(Step(begin=_MODEL, end=_YOU, text=answer, bad=asked.outcome != "answered"))
    rows.append((str(len(rows) + 1), words("the_answer"), answer))
    calls = ", ".join(map(_said, asked.calls))
    return sequence_chart(
        (words("lane_you"), words("lane_model"), words("lane_functions")),
        steps,
        name=f"calls-{number}",
        title=words("calls_title", question=asked.question),
        text=words("calls_text", count=len(asked.calls), calls=calls or words("no_calls"), answer=answer),
        head=(words("step"), words("who"), words("says")),
        rows=rows,
    )


def _said(call: CallFacts) -> str:
    return f"{call.name[:_MOST_LETTERS]}({call.arguments_json[:_MOST_LETTERS]})"


_MOST_LETTERS = 10_000  # of one text, far more than is shown of it
_YOU, _MODEL, _FUNCTIONS = range(3)
_MOMENTS = ("start", "ready", "chat", "tools", "stopped")
_POLICIES = {"16": 0, "8": 8, "4": 4}  # bits → --quant-policy, in the order in which they are drawn
_KIND_OF_BITS = {"16": "before", "8": "third", "4": "after"}


def _series(evidence: Evidence, server: ServerFacts) -> MemoryFacts | None:
    which = (server.kv_bits, server.cache_ratio)
    return next((each for each in evidence.memory if (each.kv_bits, each.cache_ratio) == which and each.points), None)


def _server_label(server: Server, words: Words) -> str:
    return words(f"server_{server.when}", bits=server.facts.kv_bits, ratio=figure(server.facts.cache_ratio, 2))


def _basis(bits: str, told: int | None, server: ServerFacts | None, words: Words) -> str:
    return words("measured" if told is not None and server and bits == str(server.kv_bits) else "computed")


def _limit_text(limit: Limit | None) -> str:
    if limit is None:
        return "–"
    low, high = grouped(round(limit.low)), grouped(round(limit.high))
    return high if low == high else f"{low}–{high}"


def _prediction(found: Sequence[Server], any_known: bool, words: Words) -> str:
    if any_known:
        return words("prediction_line")
    return words("no_prediction" if _on_gpu(found) else "no_prediction_cpu")


def _on_gpu(found: Sequence[Server]) -> bool:
    return any(each.facts.engine != "cpu" for each in found)


def _others(facts: ServerFacts, words: Words) -> str:
    return f" ({words('foreign', mib=grouped(facts.foreign_mib))})" if facts.foreign_mib else ""
