"""The words of the page, in English and Chinese."""

from __future__ import annotations

from typing import Literal, get_args

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = get_args(Language)
NAMES: dict[Language, str] = {"en": "English", "zh": "中文"}  # of the languages, each in its own

WORDS: dict[str, tuple[str, str]] = {
    "title": ("Talk to the model", "与模型对话"),
    "language": ("Language", "语言"),
    "login": ("This page asks for a login.", "此页面需要登录。"),
    # chat
    "chat": ("Chat", "对话"),
    "conversation": ("Conversation", "对话内容"),
    "empty_chat": ("Say something to the model, for instance: Who are you?", "和模型说点什么，例如：介绍一下你自己"),
    "message": ("Your message", "输入内容"),
    "keys": ("Enter sends, Shift+Enter starts a new line, Escape stops.", "Enter 发送，Shift+Enter 换行，Esc 停止。"),
    "send": ("Send", "发送"),
    "stop": ("Stop", "停止"),
    "retry": ("Retry", "重试"),
    "undo": ("Undo", "撤销"),
    "clear": ("Clear", "清空"),
    "stopped": ("stopped", "已停止"),
    "cut": ("cut off at “Max tokens”", "已达“最大 token 数”上限"),
    "no_answer": ("The model answered nothing.", "模型没有给出回答。"),
    # settings
    "settings": ("Settings", "设置"),
    "model": ("Model", "模型"),
    "system": ("System prompt", "系统提示词"),
    "system_hint": (
        "What the model is told before each conversation; may be empty.",
        "每次对话前给模型的指示，可留空。",
    ),
    "temperature": ("Temperature", "温度 (temperature)"),
    "temperature_hint": ("0 always takes the likeliest token.", "0 表示总是选择概率最高的 token。"),
    "top_p": ("Top p", "核采样 (top_p)"),
    "top_p_hint": (
        "Draws only from the likeliest tokens that add up to this.",
        "只从累计概率达到此值的 token 中采样。",
    ),
    "max_tokens": ("Max tokens", "最大 token 数"),
    "max_tokens_hint": ("The longest answer.", "回答的最大长度。"),
    # tools
    "tools": ("Tools", "工具"),
    "functions": ("Functions that the model may call", "允许模型调用的函数"),
    "question": ("Question", "问题"),
    "tools_example": ("Compute (3+5)*2", "Compute (3+5)*2"),
    "empty_tools": (
        "Each call of the model, its arguments and its result appear here as they happen.",
        "模型的每次调用、参数和结果都会实时显示在这里。",
    ),
    "calling": ("running …", "执行中……"),
    "too_many_rounds": (
        "The model was still calling after {count} rounds, so it was stopped here.",
        "模型在 {count} 轮之后仍在调用函数，到此为止。",
    ),
    # before and after
    "compare": ("Before/after", "量化前后"),
    "ask_both": ("Ask both", "同时提问"),
    "before": ("Before (baseline)", "量化前（基线）"),
    "after": ("After (quantized)", "量化后"),
    "compare_example": ("Introduce yourself", "介绍一下你自己"),
    "compare_off": (
        "Only one server is known. Start the page with a second one to compare: "
        "`lab3 web --base-url URL --compare-url BASELINE_URL`, or `lab3 web MODEL --compare BASELINE_MODEL`.",
        "目前只有一个服务。要进行对比，请在启动页面时指定第二个服务："
        "`lab3 web --base-url URL --compare-url 基线URL`，或 `lab3 web MODEL --compare 基线模型`。",
    ),
    # figures of an answer
    "answer_figures": ("Last answer", "最近一次回答"),
    "first_token": ("first token", "首 token 延迟"),
    "speed": ("speed", "速度"),
    "per_second": ("{count} tokens/s", "{count} token/s"),
    "tokens": ("tokens", "token 数"),
    "seconds": ("{count} s", "{count} 秒"),
    # server panel
    "server": ("Server", "服务"),
    "baseline": ("Baseline server", "基线服务"),
    "up": ("running", "运行中"),
    "down": ("not reachable", "无法连接"),
    "gpu_memory": ("GPU memory", "显存"),
    "cpu_memory": ("Memory", "内存"),
    "used_of": ("{used} of {total} MiB", "{used} / {total} MiB"),
    "of_which_server": ("of it this server", "其中本服务"),
    "ceiling": ("predicted ceiling", "预测上限"),
    "no_ceiling_cpu": ("only for a GPU", "仅适用于 GPU"),
    "mib": ("{count} MiB", "{count} MiB"),
    "kv_pool": ("KV pool", "KV 缓存池"),
    "kv_tokens": ("{count} tokens", "{count} 个 token"),
    "kv_holds": ("it holds", "可容纳"),
    "kv_used": ("of it in use", "已用"),
    "requests": ("requests", "请求"),
    "running_waiting": ("{running} running, {waiting} waiting", "{running} 个运行中，{waiting} 个等待"),
    "elsewhere": ("not on this machine", "不在本机"),
    "hidden": ("belongs to another user", "属于其他用户"),
    "unknown": ("unknown", "未知"),
    # faults: what happened and what to do
    "fault_down": (
        "No server answers at {url}. It is not running, or still loading: start it, wait until it is ready, "
        "and press Retry.",
        "{url} 没有服务应答，可能尚未启动或仍在加载。请启动服务，待其就绪后点击“重试”。",
    ),
    "fault_broke_off": (
        "The server broke off in the middle of the answer; it was probably stopped. See whether it still runs, "
        "and press Retry.",
        "回答中途与服务的连接断开，服务可能已停止。请确认服务仍在运行，然后点击“重试”。",
    ),
    "fault_timeout": (
        "The server did not answer in time: it is busy, or it hangs. Press Retry later, or look at its log.",
        "服务未在规定时间内应答，可能繁忙或已卡住。请稍后重试，或查看服务日志。",
    ),
    "fault_too_long": (
        "The conversation is longer than the model's context{numbers}. Press Clear, shorten the message, or start the "
        "server with a larger --session-len.",
        "对话长度超出了模型的上下文窗口{numbers}。请点击“清空”或缩短内容，或以更大的 --session-len 启动服务。",
    ),
    "fault_out_of_memory": (
        "The server is out of memory. Ask for fewer tokens or press Clear; if it goes on, start the server with a "
        "smaller --cache-max-entry-count.",
        "服务内存（显存）不足。请减小最大 token 数或点击“清空”；若仍出现，"
        "请以更小的 --cache-max-entry-count 启动服务。",
    ),
    "fault_no_tool_parser": (
        "This server cannot call functions: it was started without a tool parser. Start it with "
        "--tool-call-parser internlm (or the parser of your model).",
        "该服务不支持函数调用：启动时未指定工具解析器。"
        "请以 --tool-call-parser internlm（或模型对应的解析器）重新启动。",
    ),
    "fault_api_key": (
        "The server refuses the API key. Start the page with --api-key KEY.",
        "服务拒绝了 API key。请使用 --api-key KEY 启动页面。",
    ),
    "fault_no_such_model": (
        "The server does not serve that model (any more). Reload the page and choose another one.",
        "服务不提供（或不再提供）该模型。请刷新页面并重新选择。",
    ),
    "fault_not_an_api": (
        "{url} is no OpenAI API server. Start the page with the address of one, such as http://127.0.0.1:23333.",
        "{url} 不是 OpenAI API 服务。请以正确的地址启动页面，例如 http://127.0.0.1:23333。",
    ),
    "fault_server_failed": (
        "The server failed: {said} Look at the end of its log, then press Retry.",
        "服务出错：{said} 请查看服务日志的末尾，然后点击“重试”。",
    ),
    "fault_refused": (
        "The server refused the request: {said} Change what it names, then press Retry.",
        "服务拒绝了请求：{said} 请按提示修改后点击“重试”。",
    ),
    "fault_other": (
        "Something went wrong: {said} Press Retry; if it happens again, look at what `lab3 web` printed.",
        "出现问题：{said} 请点击“重试”；若再次出现，请查看 `lab3 web` 的输出。",
    ),
    "numbers": (" ({asked} of {most} tokens)", "（{asked} / {most} 个 token）"),
}


def word(key: str, language: Language, **facts: object) -> str:
    """The word, with its places filled."""
    text = WORDS[key][LANGUAGES.index(language)]
    return text.format(**facts) if facts else text
