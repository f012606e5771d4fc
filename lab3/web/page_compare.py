"""The tab that asks the baseline and the quantized server the same question, side by side."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from lab3.web import render
from lab3.web.page_parts import Labels, Redrawn, Wanted, thinned, wishes
from lab3.web.talk import Conversation, Figures, Turn, Wishes, merged
from lab3.web.wire import Endpoint
from lab3.web.words import Language, word


def compare_tab(
    labels: Labels, where: Endpoint, baseline: Endpoint | None, language: Any, wanted: Wanted
) -> Redrawn | None:
    """The tab; without a baseline it says how to get one, and there is nothing to redraw."""
    import gradio as gr

    with labels.add(gr.Tab(id="compare", render_children=True), label="compare"):
        if baseline is None:
            labels.add(gr.Markdown(elem_id="compare-off"), value="compare_off")
            return None
        talks = [gr.State(Conversation()) for _ in ("before", "after")]
        box = labels.add(
            gr.Textbox(word("compare_example", labels.language), lines=1, max_lines=8, elem_id="compare-message"),
            label="question",
            info="keys",
        )
        with gr.Row(elem_classes="lab3-buttons"):
            send = labels.add(gr.Button(variant="primary", elem_id="compare-send"), value="ask_both")
            stop = labels.add(
                gr.Button(variant="stop", interactive=False, elem_id="compare-stop", elem_classes="lab3-stop"),
                value="stop",
            )
        with gr.Row():
            sides = [_side(labels, side) for side in ("before", "after")]
    answers, speeds = [answer for answer, _ in sides], [speed for _, speed in sides]

    def shown(speaks: Language, *both: Conversation) -> list[Any]:
        turns = [talk.turns[-1] if talk.turns else None for talk in both]
        texts = [render.answer(turn, speaks) if turn else "" for turn in turns]
        return [*texts, *(render.figures(turn.figures if turn else Figures(), speaks) for turn in turns)]

    def usable(*both: Conversation) -> list[Any]:
        running = any(talk.running for talk in both)
        return [gr.update(interactive=not running), gr.update(interactive=running)]

    async def ask(
        said: str, before: Conversation, after: Conversation, speaks: Language, *values: Any
    ) -> AsyncGenerator[list[Any], None]:
        both, asked = (before, after), wishes(values, {})
        if said.strip() and not any(talk.running for talk in both):
            async with aclosing(thinned(_both(said, both, asked, (baseline, where)))) as turns:
                async for _ in turns:
                    yield [*shown(speaks, *both), *usable(*both)]
        yield [*shown(speaks, *both), *usable(*both)]

    async def halt(*both: Conversation) -> None:
        for talk in both:
            talk.stop()

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
    outputs = [*answers, *speeds, send, stop]
    gr.on(
        [box.submit, send.click],
        ask,
        [box, *talks, language, *wanted.inputs],
        outputs,
        trigger_mode="multiple",
        **quiet,
    )
    stop.click(halt, talks, None, queue=False, **quiet)
    return Redrawn(talks, [*answers, *speeds], shown)


def _side(labels: Labels, side: str) -> tuple[Any, Any]:
    import gradio as gr

    with gr.Column(min_width=280):
        labels.add(gr.HTML(), value=lambda language: f"<h3>{word(side, language)}</h3>")
        answer = gr.Markdown(
            elem_id=f"compare-{side}", elem_classes="lab3-text", container=True, sanitize_html=True, min_height=120
        )
        return answer, gr.HTML(render.figures(Figures(), labels.language), elem_id=f"compare-{side}-figures")


async def _both(
    said: str, talks: tuple[Conversation, Conversation], asked: Wishes, servers: tuple[Endpoint, Endpoint]
) -> AsyncGenerator[Turn, None]:
    """Each gets the question alone, without what was said before. The baseline's model is the first that it lists."""
    for talk in talks:
        talk.clear()
    before, after = servers
    sources = (talks[0].say(said, replace(asked, model=None), before), talks[1].say(said, asked, after))
    try:
        async with aclosing(merged(*sources)) as turns:
            async for turn in turns:
                yield turn
    finally:
        for source in sources:
            await source.aclose()
