"""The page: a header, three tabs, and beside them the settings and the servers' panel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lab3.errors import Lab3Error
from lab3.web import render
from lab3.web.loading import load_gradio
from lab3.web.page_compare import compare_tab
from lab3.web.page_parts import Labels, Redrawn, Wanted
from lab3.web.page_talk import talk_tab
from lab3.web.panel import Status, Watch
from lab3.web.settings import Settings
from lab3.web.talk import Conversation, Figures
from lab3.web.wire import Endpoint, models_of
from lab3.web.words import LANGUAGES, NAMES, Language, word

if TYPE_CHECKING:
    from gradio import Blocks

TICK_S = 2.0


@dataclass(frozen=True)
class Served:
    """A server that the page talks to, and what looks at it."""

    where: Endpoint
    watch: Watch


def build(settings: Settings, server: Served, baseline: Served | None = None) -> Blocks:
    """The page, not yet served. Nothing in it is shared by its users but what the arguments say."""
    load_gradio()
    import gradio as gr

    watched = {"server": server.watch} | ({"baseline": baseline.watch} if baseline else {})
    labels = Labels(settings.language)
    page: Blocks = gr.Blocks(title=f"lab3: {word('title', settings.language)}", analytics_enabled=False)
    with page:
        with gr.Row(elem_classes="lab3-head"):
            labels.add(gr.HTML(), value=lambda language: f"<h1>{word('title', language)}</h1>")
            language = gr.Radio(
                [(NAMES[each], each) for each in LANGUAGES],
                value=settings.language,
                show_label=False,
                label="Language / 语言",
                container=False,
                elem_id="language",
            )
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                tabs = gr.Tabs()
            with gr.Column(scale=1, min_width=290, elem_classes="lab3-side"):
                model = labels.add(gr.Dropdown([], elem_id="model"), label="model")
                figures = gr.HTML(render.last_answer(Figures(), settings.language), elem_id="figures", padding=True)
                panel = gr.HTML(elem_id="panel", padding=True)
                wanted = _settings(labels, model)
        with tabs:
            talks = [
                talk_tab("chat", labels, server.where, language, wanted, figures, {}),
                talk_tab("tools", labels, server.where, language, wanted, figures, settings.functions),
            ]
            compared = compare_tab(labels, server.where, baseline.where if baseline else None, language, wanted)
        speed = Redrawn([state for talk in talks for state in talk.states], [figures], _newest)
        load = Redrawn([], [panel], lambda chosen: [render.panel(_statuses(watched), chosen)])
        _switch(language, labels, [*talks, speed, load, *([compared] if compared else [])])
        _refresh(page, language, server.where, watched, wanted.model, panel)
    return page


def _settings(labels: Labels, model: Any) -> Wanted:
    import gradio as gr

    with labels.add(gr.Accordion(open=True, elem_id="settings"), label="settings"):
        system = labels.add(gr.Textbox(lines=2, elem_id="system"), label="system", info="system_hint")
        temperature = labels.add(
            gr.Slider(0, 2, value=0.7, step=0.05, elem_id="temperature"), label="temperature", info="temperature_hint"
        )
        top_p = labels.add(gr.Slider(0.05, 1, value=0.95, step=0.05, elem_id="top_p"), label="top_p", info="top_p_hint")
        max_tokens = labels.add(
            gr.Slider(1, 4096, value=512, step=1, elem_id="max_tokens"), label="max_tokens", info="max_tokens_hint"
        )
    return Wanted(model, system, temperature, top_p, max_tokens)


def _newest(language: Language, *talks: Conversation) -> list[str]:
    """The figures of the last answer, in whichever tab it was."""
    turns = sorted((turn for talk in talks for turn in talk.turns[-1:]), key=lambda turn: turn.began_at_s)
    return [render.last_answer(turns[-1].figures if turns else Figures(), language)]


def _switch(language: Any, labels: Labels, parts: list[Redrawn]) -> None:
    """The other language: all words, and what was said is rendered anew."""

    def switch(chosen: Language, *states: Any) -> list[Any]:
        at, shown = 0, []
        for part in parts:
            shown += part.redraw(chosen, *states[at : at + len(part.states)])
            at += len(part.states)
        return [*labels.updates(chosen), *shown]

    language.change(
        switch,
        [language, *(state for part in parts for state in part.states)],
        [*labels.components, *(output for part in parts for output in part.outputs)],
        show_progress="hidden",
        api_visibility="private",
        concurrency_limit=None,
    )


def _refresh(
    page: Blocks, language: Any, where: Endpoint, watched: Mapping[str, Watch], model: Any, panel: Any
) -> None:
    """Now, and every `TICK_S` seconds: the servers' panel, and the models as long as none is known."""
    import gradio as gr

    def refresh(chosen: Language, picked: str | None) -> list[Any]:
        statuses = _statuses(watched)
        choice = gr.skip() if picked or not statuses["server"].up else _models(where)
        return [render.panel(statuses, chosen), choice]

    for event in (page.load, gr.Timer(TICK_S).tick):
        event(
            refresh,
            [language, model],
            [panel, model],
            show_progress="hidden",
            api_visibility="private",
            concurrency_limit=None,
        )


def _statuses(watched: Mapping[str, Watch]) -> dict[str, Status]:
    return {name: watch.status() for name, watch in watched.items()}


def _models(where: Endpoint) -> Any:
    import gradio as gr

    try:
        names = models_of(where)
    except Lab3Error:  # the chat will say what is wrong
        return gr.skip()
    return gr.update(choices=list(names), value=names[0] if names else None)
