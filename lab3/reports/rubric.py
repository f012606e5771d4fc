"""The rubric for reports: what each check is called, what it is worth, and who finds it."""

from __future__ import annotations

from lab3.reports import (
    checks_counts,
    checks_memory,
    checks_model,
    checks_prose,
    checks_server,
    checks_tools,
    understanding,
)
from lab3.reports.checks import Check, judged
from lab3.reports.facts import ReportFacts
from lab3.reports.model import Judged

__all__ = ["CHECKS", "Check", "judge_report"]

CHECKS: tuple[Check, ...] = (
    Check(
        "report.baseline_memory", 1,
        "Memory before quantization is shown", "展示量化前的显存",
        4, checks_memory.baseline_memory,
    ),
    Check(
        "report.quantize_command", 1,
        "The model is quantized to W4A16", "执行 W4A16 量化",
        8, checks_model.quantize_command,
    ),
    Check(
        "report.sizes", 1,
        "Sizes before and after are shown", "展示量化前后的文件大小",
        5, checks_model.sizes,
    ),
    Check(
        "report.size_prediction", 1,
        "The sizes can be those of the model", "文件大小与模型结构相符",
        3, checks_model.size_prediction,
    ),
    Check(
        "report.w4a16_memory", 1,
        "Memory of the W4A16 model is shown", "展示 W4A16 模型的显存",
        4, checks_memory.w4a16_memory,
    ),
    Check(
        "report.serve_command", 1,
        "W4A16 is served with a quantized KV cache", "以 W4A16 与 KV 量化启动服务",
        8, checks_server.serve_command,
    ),
    Check(
        "report.server_started", 1,
        "The server came up", "服务启动成功",
        4, checks_server.server_started,
    ),
    Check(
        "report.served_model_made", 1,
        "The served folder was made in the report", "所服务的模型由本报告量化得到",
        3, checks_model.served_model_made,
    ),
    Check(
        "report.conversation", 1,
        "One conversation is shown", "展示一次对话",
        10, checks_server.conversation,
    ),
    Check(
        "report.server_memory", 1,
        "Memory of the server is shown", "展示服务的显存",
        8, checks_memory.server_memory,
    ),
    Check(
        "report.memory_prediction", 1,
        "The memory can be that of the commands", "显存与命令相符",
        4, checks_memory.memory_prediction,
    ),
    Check(
        "report.same_model", 1,
        "All figures are of one model", "各处为同一模型",
        3, checks_model.same_model,
    ),
    Check(
        "report.same_card", 1,
        "Figures are compared on one card", "对比使用同一显卡",
        3, checks_memory.same_card,
    ),
    Check(
        "report.flags_agree", 1,
        "Commands, logs and pictures agree", "命令、日志与截图一致",
        2, checks_server.flags_agree,
    ),
    Check(
        "report.prose_claims", 0,
        "The text says what the figures show", "文字与数据一致",
        3, checks_prose.prose_claims,
    ),
    Check(
        "report.tools_server", 2,
        "A server for function calls is shown", "展示函数调用所用的服务",
        3, checks_tools.tools_server,
    ),
    Check(
        "report.tool_calls", 2,
        "The model calls add and mul", "模型调用 add 与 mul",
        8, checks_tools.tool_calls,
    ),
    Check(
        "report.tool_results", 2,
        "Results follow from the calls", "结果由调用得出",
        5, checks_tools.tool_results,
    ),
    Check(
        "report.completion_counts", 2,
        "Token counts add up", "token 计数自洽",
        2, checks_counts.completion_counts,
    ),
    Check(
        "report.completion_tokens", 2,
        "Token counts are the tokenizer's", "token 计数与分词器一致",
        0, checks_counts.completion_tokens,
    ),
    Check(
        "report.tools_model", 2,
        "The claimed model makes the calls", "由所声称的模型调用",
        2, checks_tools.tools_model,
    ),
    Check(
        "report.understanding.weights_only", 1,
        "W4A16 leaves activations in 16 bits", "W4A16 不量化激活值",
        2, understanding.weights_only, pictures=False,
    ),
    Check(
        "report.understanding.kv_online", 1,
        "KV cache quantization needs no calibration", "KV 量化无需校准",
        2, understanding.kv_online, pictures=False,
    ),
    Check(
        "report.understanding.kv_memory", 1,
        "Fewer KV bits hold more tokens, not less memory", "KV 量化不降低总显存",
        1, understanding.kv_memory, pictures=False,
    ),
    Check(
        "report.understanding.not_all_weights", 1,
        "Embeddings and output stay in 16 bits", "嵌入与输出层不量化",
        1, understanding.not_all_weights, pictures=False,
    ),
    Check(
        "report.understanding.difference", 1,
        "The two methods are told apart", "说明两种量化的区别",
        2, understanding.difference, pictures=False,
    ),
)  # fmt: skip


def judge_report(facts: ReportFacts) -> tuple[Judged, ...]:
    """The verdicts of all checks, in their order."""
    return tuple(judged(check, facts) for check in CHECKS)
