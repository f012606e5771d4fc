"""The words of the pages, the charts and the homework, in English and Chinese."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Language = Literal["en", "zh"]

_WORDS: dict[str, tuple[str, str]] = {
    # verdicts
    "pass": ("passed", "通过"),
    "fail": ("failed", "未通过"),
    "unknown": ("not judged", "无法判定"),
    "task": ("Task", "任务"),
    "other_checks": ("Beyond the lab", "附加检查"),
    "points": ("points", "分"),
    "verdicts": ("Verdicts", "检查结果"),
    "at_a_glance": ("At a glance", "总览"),
    "details": ("Each check in full", "逐项说明"),
    "expected": ("expected", "预期"),
    "found": ("found", "实际"),
    "whose": ("Whose fault", "责任归属"),
    "see_again": ("To see it again", "复现命令"),
    "read_from": ("from", "依据："),
    "not_deciding": ("earns points, does not decide", "计分，但不决定是否通过"),
    "no_verdicts": ("Nothing was judged.", "没有检查结果。"),
    "whose_machine": ("the machine’s, not the model’s", "运行环境的问题，与模型无关"),
    "whose_server": ("the model server’s", "模型服务"),
    "whose_model": ("the model’s", "模型"),
    "whose_kv_cache": ("the KV cache’s", "KV 缓存"),
    "whose_subject": ("the work’s own", "作业本身"),
    "whose_unknown": ("not known", "未知"),
    # header
    "lab": ("LMDeploy quantization lab", "LMDeploy 量化实验"),
    "of": ("of", "/"),
    "subject_reference": ("done by lab3", "由 lab3 完成"),
    "subject_server": ("a running server", "运行中的服务"),
    "subject_submission": ("a submission", "学生作业"),
    "all_passed": ("All required checks passed.", "所有必需的检查均已通过。"),
    "some_failed": ("{count} required checks failed.", "{count} 项必需的检查未通过。"),
    "one_failed": ("1 required check failed.", "1 项必需的检查未通过。"),
    "some_unknown": (
        "No required check failed, and {count} could not be judged.",
        "没有未通过的必需检查，但有 {count} 项无法判定。",
    ),
    # figures
    "figures": ("Figures", "数据"),
    "as_table": ("The figures as a table", "以表格查看数据"),
    "before": ("before", "量化前"),
    "after": ("after", "量化后"),
    "change": ("change", "变化"),
    "weights": ("Weights", "权重"),
    "folder": ("Folder on disk", "磁盘上的文件夹"),
    "sizes": ("Size before and after", "量化前后的体积"),
    "sizes_text": (
        "Weights {weights_before} → {weights_after} ({weights_change}), folder {folder_before} → {folder_after} "
        "({folder_change}). The mark is what the model’s shape predicts: {predicted}.",
        "权重 {weights_before} → {weights_after}（{weights_change}），文件夹 {folder_before} → {folder_after}"
        "（{folder_change}）。竖线为按模型结构预测的大小：{predicted}。",
    ),
    "predicted": ("predicted", "预测"),
    "bytes": ("bytes", "字节"),
    "what": ("what", "项目"),
    "value": ("value", "数值"),
    "gpu_memory": ("GPU memory", "显存"),
    "cpu_memory": ("Process memory", "进程内存"),
    "memory_before_after": ("{memory} before and after", "量化前后的{memory}"),
    "memory_text": (
        "At its peak: {figures}, of {total} MiB. {prediction}",
        "峰值：{figures}，总量 {total} MiB。{prediction}",
    ),
    "peak_of": ("{server}: {used} MiB", "{server}：{used} MiB"),
    "foreign": ("of which others held {mib} MiB", "其中其他进程占用 {mib} MiB"),
    "prediction_line": ("The mark is the predicted ceiling.", "竖线为预测上限。"),
    "no_prediction": (
        "There is no prediction for this engine.",
        "该引擎没有显存预测。",
    ),
    "no_prediction_cpu": (
        "lab3 predicts GPU memory only; on the CPU the card is the memory budget.",
        "lab3 只预测显存；在 CPU 上以内存预算代替显卡。",
    ),
    "memory_over_time": ("{memory} over time: {server}", "{memory}随时间的变化：{server}"),
    "memory_over_time_text": (
        "It rises to {peak} MiB within {seconds} s. Moments: {moments}.",
        "{seconds} 秒内最高达到 {peak} MiB。时刻：{moments}。",
    ),
    "not_over_time": (
        "Memory over time was not recorded in this run; its peaks are.",
        "本次运行没有记录内存随时间的变化，只有峰值。",
    ),
    "card": ("card: {mib} MiB", "显卡：{mib} MiB"),
    "budget": ("budget: {mib} MiB", "预算：{mib} MiB"),
    "card_head": ("card", "显卡"),
    "budget_head": ("budget", "预算"),
    "ceiling": ("predicted: {mib} MiB", "预测：{mib} MiB"),
    "moment": ("moment", "时刻"),
    "moment_start": ("start", "启动"),
    "moment_ready": ("ready", "就绪"),
    "moment_chat": ("chat", "对话"),
    "moment_tools": ("calls", "函数调用"),
    "moment_stopped": ("stopped", "停止"),
    "moment_peak": ("peak", "峰值"),
    "seconds": ("seconds", "秒"),
    "server_before": ("unquantized, KV {bits} bits, ratio {ratio}", "未量化，KV {bits} 位，比例 {ratio}"),
    "server_after": ("W4A16, KV {bits} bits, ratio {ratio}", "W4A16，KV {bits} 位，比例 {ratio}"),
    "capacity": ("What the KV cache holds, by policy", "不同 KV 策略下的缓存容量"),
    "capacity_text": (
        "The same pool of the quantized server holds {int4} tokens in 4 bits ({times}x those of 16 bits). {how}",
        "同一 KV 缓存池以 4 位存储可容纳 {int4} 个 token（是 16 位的 {times} 倍）。{how}",
    ),
    "capacity_told": (
        "The server itself tells {tokens} with {bits} bits; the others follow from the bytes of a token.",
        "服务自报 {bits} 位时为 {tokens}；其余按每个 token 的字节数推算。",
    ),
    "bytes_text": (
        "A token takes {bytes16} bytes of the KV cache in 16 bits and {bytes4} in 4 ({times}x fewer). The server does "
        "not tell how many it holds.",
        "每个 token 在 16 位 KV 缓存中占 {bytes16} 字节，4 位时占 {bytes4} 字节（前者的 1/{times}）。服务未报告容量。",
    ),
    "policy": ("--quant-policy {policy} ({bits} bits)", "--quant-policy {policy}（{bits} 位）"),
    "policy_head": ("policy", "策略"),
    "bytes_per_token": ("bytes of a token", "每 token 字节数"),
    "tokens": ("tokens", "token 数"),
    "measured": ("told by the server", "服务自报"),
    "computed": ("computed", "推算"),
    "perplexity": ("Perplexity before and after", "量化前后的困惑度"),
    "perplexity_short": ("Perplexity", "困惑度"),
    "perplexity_text": (
        "On held-out text; lower is better. {figures}.",
        "在留出文本上测得，越低越好。{figures}。",
    ),
    "ppl_before": ("16-bit weights", "16 位权重"),
    "ppl_after": ("W4A16", "W4A16"),
    "ppl_kv": ("W4A16 and int4 KV cache", "W4A16 与 int4 KV 缓存"),
    "conversation": ("Conversation", "对话"),
    "you": ("you", "你"),
    "model": ("model", "模型"),
    "said_nothing": ("(an empty answer)", "（空回答）"),
    "token_counts": (
        "{prompt} + {completion} = {total} tokens",
        "{prompt} + {completion} = {total} 个 token",
    ),
    "first_token": ("first token after {seconds} s", "首个 token 用时 {seconds} 秒"),
    "speed": ("{speed} tokens/s", "{speed} token/秒"),
    "ended": ("ended by {reason}", "结束原因：{reason}"),
    "calls": ("Function call", "函数调用"),
    "calls_title": ("Who said what: {question}", "调用过程：{question}"),
    "calls_text": (
        "The model made {count} calls: {calls}. Its answer: {answer}",
        "模型进行了 {count} 次调用：{calls}。回答：{answer}",
    ),
    "no_calls": ("none", "无"),
    "lane_you": ("lab3", "lab3"),
    "lane_model": ("model", "模型"),
    "lane_functions": ("add, mul", "add、mul"),
    "step": ("step", "步骤"),
    "who": ("who", "角色"),
    "says": ("says", "内容"),
    "asks": ("asks the model", "向模型提问"),
    "the_call": ("the model calls", "模型发起调用"),
    "the_result": ("the function gives", "函数返回"),
    "the_answer": ("the model answers", "模型回答"),
    "asked_often": (
        "Asked {count} times at temperature {temperature}: {right} times right.",
        "在温度 {temperature} 下提问 {count} 次：{right} 次正确。",
    ),
    # the rest
    "reproduce": ("To reproduce", "复现方法"),
    "whole_lab": ("The whole lab", "完整实验"),
    "first_server": ("The unquantized model’s server", "未量化模型的服务"),
    "second_server": ("The quantized model’s server", "量化后模型的服务"),
    "quantize_step": ("The quantization", "量化"),
    "environment": ("Environment", "运行环境"),
    "trouble": ("What could not be shown", "未能展示的内容"),
    "log_end": ("the log’s end", "日志末尾"),
    "startup": ("ready after {seconds} s", "{seconds} 秒后就绪"),
    "fewer": ("smaller", "体积减少"),
    "memory_tile": ("{memory} at the peak", "{memory}峰值"),
    "tokens_tile": ("tokens in the KV cache", "KV 缓存可容纳的 token"),
    "speed_tile": ("tokens/s, streamed", "token/秒（流式）"),
    "not_shown": ("not shown", "未展示"),
    "notices": ("Notes", "备注"),
    # two runs
    "compared": ("Two runs compared", "两次运行的比较"),
    "differs": ("differs", "不同"),
    "same": ("the same", "相同"),
    "one_worse": (
        "1 required check passed in A and does not in B.",
        "有 1 项必需检查在 A 中通过，而在 B 中未通过。",
    ),
    "worse": (
        "{count} required checks passed in A and do not in B.",
        "有 {count} 项必需检查在 A 中通过而在 B 中未通过。",
    ),
    "not_worse": ("B passes every required check that A passes.", "A 通过的必需检查在 B 中也都通过。"),
    "only_one": ("not judged in both", "仅在一次运行中判定"),
    "verdict": ("verdict", "结果"),
    "figure": ("figure", "指标"),
    "unit": ("unit", "单位"),
    "check": ("check", "检查项"),
    "run": ("run", "运行"),
    "score": ("Score", "得分"),
    "peak_mib": ("Memory at the peak, MiB", "内存峰值，MiB"),
    "weight_bytes": ("Weights, bytes", "权重，字节"),
    "startup_s": ("Seconds until ready", "启动用时，秒"),
}
# A task's number is written otherwise in the two languages.
_TASKS = {"en": "Task {number}", "zh": "任务 {number}"}


class Words:
    """The words of a language: `words("task")`, with what a sentence needs as keywords."""

    def __init__(self, language: Language, more: Mapping[str, tuple[str, str]] | None = None) -> None:
        self.language = language
        self._which = 0 if language == "en" else 1
        self._words = {**_WORDS, **(more or {})}

    def __call__(self, name: str, **values: object) -> str:
        text = self._words[name][self._which]
        return text.format(**values) if values else text

    def task(self, number: int) -> str:
        """The heading of a task's checks; 0 is what no task asks for."""
        return _TASKS[self.language].format(number=number) if number else self("other_checks")

    def title(self, verdict: object) -> str:
        """A verdict's or check's title."""
        return str(getattr(verdict, "title" if self.language == "en" else "title_zh"))
