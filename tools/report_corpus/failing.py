"""Reports that say honestly that something did not work."""

from __future__ import annotations

from tools.report_corpus.draft import Draft
from tools.report_corpus.lab import Round, Script
from tools.report_corpus.looks import GNOME, SOLARIZED_LIGHT, VSCODE, VSCODE_LIGHT
from tools.report_corpus.registry import report
from tools.report_corpus.steps import Steps
from tools.report_corpus.verdicts import ANY, OPEN, all_of, facts, right

FAILED = ["not_achieved", "missing"]
OPEN_KINDS = ["", "missing", "not_achieved"]

NO_MEMORY = """[WARNING] gemm_config.in is not found; using default GEMM algo
Traceback (most recent call last):
  File "/root/.conda/envs/lmdeploy/bin/lmdeploy", line 8, in <module>
    sys.exit(run())
  File "/root/.conda/envs/lmdeploy/lib/python3.10/site-packages/lmdeploy/turbomind/turbomind.py", line 124, in _create_weight_func
    model_comm.create_shared_weights(device_id, rank)
RuntimeError: [TM][ERROR] CUDA runtime error: out of memory /lmdeploy/src/turbomind/utils/allocator.h:231
"""

PORT_IN_USE = """INFO:     Started server process [28841]
INFO:     Waiting for application startup.
INFO:     Application startup complete.
ERROR:    [Errno 98] error while attempting to bind on address ('0.0.0.0', 23333): address already in use
INFO:     Waiting for application shutdown.
INFO:     Application shutdown complete.
"""


@report("38-out-of-memory", look=VSCODE_LIGHT)
def out_of_memory(d: Draft) -> None:
    s = Steps(d=d, total=24566, ratio=0.4)
    s.memory("m", s.before)
    s.quantize("q")
    s.sizes("s")
    s.memory("w", s.after)
    d.terminal("oom", [(s.serve_command, NO_MEMORY)])
    d.write(f"""
# 作业（没有全部完成）

## 量化前的显存

`lmdeploy chat {s.model}`

![](images/m.png)

## 量化

![](images/q.png)

![](images/s.png)

## 量化后的显存

`lmdeploy chat {s.made} --model-format awq`

![](images/w.png)

## 启动API服务：失败

同一台机器上有别人的进程，每次都爆显存，试了几次都没有成功：

![](images/oom.png)

所以后面的对话和函数调用都没有做出来。
""")
    d.expect(
        "The server runs out of memory, and the student says so; the rest could not be done.",
        {
            **all_of(
                "pass",
                "baseline_memory",
                "quantize_command",
                "sizes",
                "size_prediction",
                "w4a16_memory",
                "serve_command",
                "served_model_made",
            ),
            **all_of("fail", "server_started", "conversation", "server_memory", "tool_calls"),
            **all_of(OPEN, "tools_server", "tool_results", "completion_counts", "tools_model"),
            "memory_prediction": ["pass", "unknown"],
            **facts(),
        },
        kinds={
            "server_started": "not_achieved",
            "conversation": FAILED,
            "server_memory": FAILED,
            "tool_calls": FAILED,
            **dict.fromkeys(("tools_server", "tool_results", "completion_counts", "tools_model"), OPEN_KINDS),
        },
    )


@report("39-port-in-use", look=GNOME, prompt=r"student@vm:\w$ ")
def port_in_use(d: Draft) -> None:
    s = Steps(
        d=d,
        total=24576,
        card="NVIDIA A10",
        model="/home/student/internlm2_5-1_8b-chat",
        made="/home/student/internlm2_5-1_8b-chat-w4a16-4bit",
        ratio=0.4,
    )
    s.memory("1", s.before)
    s.quantize("2")
    s.sizes("3")
    s.memory("4", s.after)
    d.terminal("5", [(s.serve_command, PORT_IN_USE)])
    d.write(f"""
# Homework 3

Before: `lmdeploy chat {s.model}`

![](images/1.png)

AWQ:

![](images/2.png)
![](images/3.png)

After: `lmdeploy chat {s.made} --model-format awq`

![](images/4.png)

Server. It does not start, the port is taken and I do not know by what. I could not solve this before the deadline:

![](images/5.png)

Therefore there is no conversation and no function calling.
""")
    d.expect(
        "The server cannot bind its port, and the student says so.",
        {
            **all_of(
                "pass",
                "baseline_memory",
                "quantize_command",
                "sizes",
                "size_prediction",
                "w4a16_memory",
                "serve_command",
                "served_model_made",
            ),
            **all_of("fail", "server_started", "conversation", "server_memory", "tool_calls"),
            **all_of(OPEN, "tools_server", "tool_results", "completion_counts", "tools_model"),
            "memory_prediction": ["pass", "unknown"],
            **facts(),
        },
        kinds={
            "server_started": "not_achieved",
            "conversation": FAILED,
            "server_memory": FAILED,
            "tool_calls": FAILED,
            **dict.fromkeys(("tools_server", "tool_results", "completion_counts", "tools_model"), OPEN_KINDS),
        },
    )


@report("40-tool-not-called", look=VSCODE)
def tool_not_called(d: Draft) -> None:
    s = Steps(d=d, ratio=0.4)
    s.usual()
    s.talk("talk", "请用英文打个招呼", "Hello, nice to meet you!")
    reply = Script(
        rounds=[
            Round(
                content="To compute (3+9)*4, first add 3 and 9 to get 12, then multiply by 4 to get 48.",
                usage=(58, 33, 91),
                model=s.made,
            )
        ]
    )
    text = reply.output() + (
        'Traceback (most recent call last):\n  File "/root/func.py", line 48, in <module>\n'
        "    name = response.choices[0].message.tool_calls[0].function.name\nTypeError: 'NoneType' object is not subscriptable\n"
    )
    d.terminal("calls", [("python func.py", text)], figures=["tokens 58+33=91"])
    d.write(f"""
# 第三关

## 量化前

`lmdeploy chat {s.model}`

![](images/baseline.png)

## 量化

![](images/awq.png)

![](images/du.png)

## 量化后

`lmdeploy chat {s.made} --model-format awq`

![](images/w4a16.png)

## 服务

![](images/serve.png)

![](images/talk.png)

![](images/memory.png)

## 任务2 函数调用

用同一个服务。模型没有调用函数，直接自己算了，tool_calls 是 None，所以脚本报错了。换了几种提示词都不行，1.8B 可能太小。

![](images/calls.png)
""")
    d.expect(
        "The model answers in words and calls no function; the student says so.",
        {**right(tool_calls="fail", tool_results=OPEN, completion_counts=["pass", "unknown"]), **facts()},
        kinds={"tool_calls": "not_achieved", "tool_results": OPEN_KINDS},
    )


@report("41-no-calibration-data", look=SOLARIZED_LIGHT, prompt=r"root@studio-{host}:\w# ")
def no_calibration_data(d: Draft) -> None:
    s = Steps(d=d, ratio=0.4)
    error = (
        "Loading checkpoint shards: 100%|████████████████████| 2/2 [00:03<00:00,  1.71s/it]\nLoading calibrate dataset ...\n"
        "Traceback (most recent call last):\n"
        '  File "/root/.conda/envs/lmdeploy/lib/python3.10/site-packages/datasets/load.py", line 1773, in dataset_module_factory\n'
        "    raise ConnectionError(f\"Couldn't reach '{path}' on the Hub ({type(e).__name__})\")\n"
        "ConnectionError: Couldn't reach 'ptb_text_only' on the Hub (ConnectTimeout)\n"
    )
    s.memory("base", s.before)
    s.quantize("failed", output=error)
    d.path("failed").unlink()
    d.terminal(
        "failed",
        [
            (
                f"lmdeploy lite auto_awq {s.model} --calib-dataset ptb --w-bits 4 --w-group-size 128 --work-dir {s.made}",
                error,
            )
        ],
    )
    d.write(f"""
# L3

原模型显存，`lmdeploy chat {s.model}`

![](images/base.png)

W4A16 量化失败，数据集下载不下来，一直超时：

![](images/failed.png)

没有量化好的模型，后面的步骤没法做，请老师见谅。
""")
    d.expect(
        "The quantization fails, as the calibration data cannot be loaded; the student says so.",
        {
            "baseline_memory": "pass",
            "quantize_command": "fail",
            **all_of("fail", "sizes", "w4a16_memory", "conversation", "server_memory", "server_started", "tool_calls"),
            **all_of(
                OPEN,
                "size_prediction",
                "serve_command",
                "served_model_made",
                "tools_server",
                "tool_results",
                "completion_counts",
                "tools_model",
                "same_card",
                "flags_agree",
            ),
            "memory_prediction": ["pass", "unknown"],
            "same_model": ANY,
            **facts(),
        },
        kinds={
            "quantize_command": "not_achieved",
            **dict.fromkeys(
                ("sizes", "w4a16_memory", "conversation", "server_memory", "server_started", "tool_calls"), FAILED
            ),
            **dict.fromkeys(
                (
                    "size_prediction",
                    "serve_command",
                    "served_model_made",
                    "tools_server",
                    "tool_results",
                    "completion_counts",
                    "tools_model",
                    "same_card",
                    "flags_agree",
                    "same_model",
                ),
                OPEN_KINDS,
            ),
        },
    )
