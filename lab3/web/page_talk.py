"""The tabs in which a user talks to one model: plain chat, and the one where the model may call functions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, Literal

from lab3.funcall import Tool
from lab3.web import render
from lab3.web.page_parts import Labels, Redrawn, Wanted, thinned, wishes
from lab3.web.talk import Conversation
from lab3.web.toolbox import description, signature
from lab3.web.wire import Endpoint
from lab3.web.words import Language, word


def talk_tab(
    kind: Literal["chat", "tools"],
    labels: Labels,
    where: Endpoint,
    language: Any,
    wanted: Wanted,
    figures: Any,
    functions: Mapping[str, Tool],
) -> Redrawn:
    """The tab. `figures` shows the speed of the last answer; `functions` are those that can be switched on."""
    import gradio as gr

    with labels.add(gr.Tab(id=kind, render_children=True), label=kind):
        conversation = gr.State(Conversation())
        chosen = _choice(labels, functions) if functions else None
        chat = labels.add(
            gr.Chatbot(
                elem_id=kind,
                elem_classes="lab3-text",
                sanitize_html=True,
                allow_tags=False,
                allow_file_downloads=False,
                feedback_options=None,
                buttons=["copy"],
            ),
            label="conversation",
            placeholder=f"empty_{kind}",
        )
        example = word("tools_example", labels.language) if kind == "tools" else None
        box = labels.add(
            gr.Textbox(example, lines=1, max_lines=8, autofocus=kind == "chat", elem_id=f"{kind}-message"),
            label="message" if kind == "chat" else "question",
            info="keys",
        )
        with gr.Row(elem_classes="lab3-buttons"):
            send = labels.add(gr.Button(variant="primary", elem_id=f"{kind}-send"), value="send")
            stop = labels.add(
                gr.Button(variant="stop", interactive=False, elem_id=f"{kind}-stop", elem_classes="lab3-stop"),
                value="stop",
            )
            retry = labels.add(gr.Button(interactive=False, elem_id=f"{kind}-retry"), value="retry")
            undo = labels.add(gr.Button(interactive=False, elem_id=f"{kind}-undo"), value="undo")
            clear = labels.add(gr.Button(interactive=False, elem_id=f"{kind}-clear"), value="clear")
    buttons = [send, stop, retry, undo, clear]

    def state_of(talk: Conversation) -> list[Any]:
        """The buttons as they fit."""
        idle, any_turn = not talk.running, bool(talk.turns)
        usable = [idle, talk.running, idle and any_turn, idle and any_turn, any_turn]
        return [gr.update(interactive=each) for each in usable]

    async def say(said: str, talk: Conversation, speaks: Language, *values: Any) -> AsyncGenerator[list[Any], None]:
        names = values[len(wanted.inputs)] if chosen is not None else []
        asked = wishes(values[: len(wanted.inputs)], {name: functions[name] for name in names if name in functions})
        emptied: Any = "" if said.strip() else gr.skip()
        async with aclosing(thinned(talk.say(said, asked, where))) as turns:
            async for turn in turns:
                shown = [render.messages(talk, speaks), render.last_answer(turn.figures, speaks)]
                yield [emptied, *shown, *state_of(talk)]
                emptied = gr.skip()  # the next message may be written while this one is answered
        yield [gr.skip(), render.messages(talk, speaks), gr.skip(), *state_of(talk)]

    async def again(talk: Conversation, speaks: Language, *values: Any) -> AsyncGenerator[list[Any], None]:
        async with aclosing(say(talk.undo(), talk, speaks, *values)) as answers:
            async for shown in answers:
                yield [gr.skip(), *shown[1:]]

    async def halt(talk: Conversation) -> None:
        talk.stop()

    async def take_back(talk: Conversation, speaks: Language) -> list[Any]:
        said = talk.undo()
        return [said or gr.skip(), render.messages(talk, speaks), gr.skip(), *state_of(talk)]

    async def forget(talk: Conversation, speaks: Language) -> list[Any]:
        talk.clear()
        return [gr.skip(), render.messages(talk, speaks), gr.skip(), *state_of(talk)]

    values = [*wanted.inputs, *([chosen] if chosen is not None else [])]
    outputs = [box, chat, figures, *buttons]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
    # The browser would swallow what is sent before it has heard of the last answer's end; `Conversation` refuses twice.
    asking = {"trigger_mode": "multiple", **quiet}
    gr.on([box.submit, send.click], say, [box, conversation, language, *values], outputs, **asking)
    retry.click(again, [conversation, language, *values], outputs, **asking)
    stop.click(halt, [conversation], None, queue=False, **quiet)
    undo.click(take_back, [conversation, language], outputs, queue=False, **quiet)
    gr.on([clear.click, chat.clear], forget, [conversation, language], outputs, queue=False, **quiet)
    return Redrawn([conversation], [chat], lambda speaks, talk: [render.messages(talk, speaks)])


def _choice(labels: Labels, functions: Mapping[str, Tool]) -> Any:
    import gradio as gr

    box = gr.CheckboxGroup(
        [(f"{signature(tool)} – {description(tool)}", name) for name, tool in functions.items()],
        value=list(functions),
        elem_id="functions",
    )
    return labels.add(box, label="functions")
