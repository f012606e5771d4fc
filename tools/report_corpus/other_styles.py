"""Reports in styles of their own: Windows, photographs that lean, nothing but pictures, nothing but tables, second tries."""

from __future__ import annotations

from dataclasses import replace

from tools.report_corpus import lab
from tools.report_corpus.draft import Draft
from tools.report_corpus.effects import photographed
from tools.report_corpus.lab import used_mib
from tools.report_corpus.looks import MAC, SOLARIZED_DARK, VSCODE, WINDOWS, XTERM
from tools.report_corpus.registry import report
from tools.report_corpus.steps import Steps
from tools.report_corpus.verdicts import OPEN, facts, right, sums, understood

_POWERSHELL = replace(WINDOWS, paper="#012456", ink="#eeedf0", title="Windows PowerShell", columns=108)


@report("50-powershell", look=_POWERSHELL, images="shots")
def powershell(d: Draft) -> None:
    total, model, made = 24564, "D:\\llm\\internlm2_5-1_8b-chat", "D:\\llm\\internlm2_5-1_8b-chat-w4"
    before, chat, server = (used_mib(total, *each) for each in (("1_8b",), ("1_8b-4bit", 0.5), ("1_8b-4bit", 0.5)))
    query = "nvidia-smi --query-gpu=name,memory.used,memory.total --format=csv"
    head = "name, memory.used [MiB], memory.total [MiB]"

    def asked(name: str, used: int) -> str:
        text = f"PS D:\\llm> {query}\n{head}\nNVIDIA GeForce RTX 4090, {used} MiB, {total} MiB\nPS D:\\llm> "
        return d.typed(name, text, figures=[f"{used}/{total}"])

    asked("before", before)
    quantize = (
        f"PS D:\\llm> lmdeploy lite auto_awq {model} `\n>>   --calib-dataset ptb --w-bits 4 `\n>>   --work-dir {made}\n"
    )
    d.typed("awq", quantize + lab.quantizing(moment=3))
    asked("after", chat)
    serve = f"PS D:\\llm> lmdeploy serve api_server {made} `\n>>   --model-format awq `\n>>   --quant-policy 8 `\n"
    d.typed(
        "serve",
        f"{serve}>>   --cache-max-entry-count 0.5 --server-port 9100\n{lab.serving(9100, pid=17320)}",
        figures=["port 9100"],
    )
    d.rows(
        "page",
        "InternLM2.5 on my desktop",
        [("Which metal is liquid at room temperature?", "Mercury is the only one.")],
    )
    asked("server", server)
    script = sums(11, 4, 6, model=made.replace("\\", "/"))
    d.typed(
        "calls",
        f"PS D:\\llm> python .\\calls.py\n{script.output()}PS D:\\llm> ",
        figures=[figure for each in script.rounds for figure in each.figures],
    )
    d.write(f"""
# LMDeploy lab on Windows

## Baseline
`lmdeploy chat {model}` in one window, and in the other one:

![](shots/before.png)

## AWQ
![](shots/awq.png)

Explorer says 3.52 GB for the folder before and 1.46 GB for the new one.

## lmdeploy chat, quantized
`lmdeploy chat {made} --model-format awq --cache-max-entry-count 0.5`

![](shots/after.png)

## Server
![](shots/serve.png)

Talking to it through a little streamlit app:

![](shots/page.png)

![VRAM of the server](shots/server.png)

## Tools
Same server, `(11+4)*6`:

![](shots/calls.png)

## Question
W4A16 stores the weights of the linear layers in four bits and computes with 16-bit activations, so it is about weights.
The KV cache is quantized while the model runs, per token and head; it needs no calibration set, W4A16's AWQ does.
""")
    d.expect(
        "Windows PowerShell with backticks and drive letters, a query instead of a table, a streamlit page; sizes only told.",
        {
            **right(sizes=OPEN, size_prediction=["unknown", "pass"]),
            "prose_claims": ["unknown", "pass"],
            **facts(weights_only="pass", kv_online="pass", difference="pass"),
        },
    )


@report("51-leaning", look=MAC, suffix=".jpg", colours=64, quality=60)
def leaning(d: Draft) -> None:
    s = Steps(
        d=d, total=24576, card="NVIDIA GeForce RTX 3090", model="/data/internlm2_5-1_8b-chat", made="/data/awq-1_8b"
    )
    s.memory("a", s.before, effects=[photographed(2.8)])
    s.quantize("b", effects=[photographed(-2.2)])
    s.serve("c", effects=[photographed(3.5)])
    d.playground(
        "d",
        s.made,
        [("推荐三本入门的天文书", "《星空的历史》《给孩子的天文课》《宇宙简史》都适合入门。")],
        effects=[photographed(-1.8)],
    )
    s.memory("e", s.serving, effects=[photographed(2.0)])
    d.script("f", "python func_call.py", sums(14, 9, 4, model=s.made), effects=[photographed(-2.6)])
    d.write(f"""
# 作业3

**量化前**（`lmdeploy chat {s.model}`）

![](images/a.jpg)

**量化**

![](images/b.jpg)

**部署**

![](images/c.jpg)

**聊天**

![](images/d.jpg)

**部署后的显存**

![](images/e.jpg)

**函数调用** (14+9)*4

![](images/f.jpg)
""")
    d.expect(
        "Photographs of a screen that lean to both sides; no sizes, no chat of the quantized model, no answer.",
        {**right(sizes=OPEN, size_prediction=OPEN, w4a16_memory=OPEN, flags_agree=["pass", "unknown"]), **facts()},
    )


@report("52-pictures-only", look=VSCODE)
def pictures_only(d: Draft) -> None:
    s = Steps(d=d, ratio=0.4, chat_ratio=0.4)
    d.terminal(
        "1", [(f"lmdeploy chat {s.model}", lab.chatting("internlm2", [("你好", "你好，有什么可以帮你？")]), True)]
    )
    s.memory("2", s.before)
    s.quantize("3")
    s.sizes("4")
    command = f"lmdeploy chat {s.made} --model-format awq --cache-max-entry-count 0.4"
    d.terminal("5", [(command, lab.chatting("internlm2", [("1+1", "2")], ratio=0.4, awq=True), True)])
    s.memory("6", s.after)
    s.serve("7")
    d.playground("8", s.made, [("用三句话讲一个笑话", "小明说他会飞。大家不信。他拿出了机票。")], chinese=True)
    s.memory("9", s.serving)
    s.calls("10", 8, 13, 2)
    pictures = "\n\n".join(f"![]({n}.png)".replace("(", "(images/") for n in range(1, 11))
    d.write(f"# 第三次作业\n\n{pictures}\n")
    d.expect(
        "Ten pictures in their order and not one word between them.",
        {**right(tools_server=["pass", "unknown"], flags_agree=["pass", "unknown"]), **facts()},
    )


@report("53-second-try", look=SOLARIZED_DARK, images="img")
def second_try(d: Draft) -> None:
    s = Steps(d=d, total=8188, card="NVIDIA GeForce RTX 4060", ratio=0.3, chat_ratio=0.3, port=8000)
    s.memory("base", s.before)
    s.quantize("awq")
    s.sizes("du")
    s.memory("chat", s.after)
    broken = s.serve_command.replace("0.3", "0.95")
    d.terminal("oom", [(broken, "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 512.00 MiB\n")])
    s.serve("serve")
    s.talk("page", "写一句鼓励自己的话", "坚持下去，每一步都算数。", dark=True)
    s.memory("served", s.serving)
    s.calls("calls", 3, 17, 5)
    d.write(f"""
## step ① before
lmdeploy chat {s.model}，显存：

![](img/base.png)

## step ② W4A16
![](img/awq.png)
![](img/du.png)

## step ③ quantized chat
`lmdeploy chat {s.made} --model-format awq --cache-max-entry-count 0.3`
![](img/chat.png)

## step ④ api_server
第一次用 0.95，直接 OOM：

![](img/oom.png)

把 `--cache-max-entry-count` 改成 0.3 之后就好了：

![](img/serve.png)
![](img/page.png)
服务运行时的显存
![](img/served.png)

## step ⑤ function call
server 不变，(3+17)*5：

![](img/calls.png)

## 区别
W4A16 是对权重做 4bit 离线量化（需要校准集），activation 还是 fp16；KV cache 量化是推理时在线做的，不需要校准集，
把 K 和 V 存成 int4/int8，同样的显存里能放更多 token，nvidia-smi 上的总占用不变。lm_head 和 embedding 没有量化。
""")
    d.expect(
        "The first server ran out of memory, the second came up: an 8 GB card, headings in two languages.",
        {**right(), **understood()},
    )


@report("54-tables-only", look=XTERM)
def tables_only(d: Draft) -> None:
    total = 40960
    before, after, server = used_mib(total, "7b"), used_mib(total, "7b-4bit", 0.4), used_mib(total, "7b-4bit", 0.4)
    d.write(f"""
Lab 3 notes
===========

Setup
-----

| item | value |
| :-- | :-- |
| model | internlm2_5-7b-chat |
| card | A100-PCIE-40GB ({total} MiB) |
| quantization | `lmdeploy lite auto_awq /m/internlm2_5-7b-chat --w-bits 4 --work-dir /m/internlm2_5-7b-awq` |
| server | `lmdeploy serve api_server /m/internlm2_5-7b-awq --model-format awq --quant-policy 4 --cache-max-entry-count 0.4` |

Results
-------

| step | memory | size on disk |
| :-- | --: | --: |
| before quantization (`lmdeploy chat`) | {before} MiB / {total} MiB | 15G |
| W4A16, `lmdeploy chat`, ratio 0.4 | {after} MiB / {total} MiB | 4.9G |
| W4A16 + int4 KV, api_server | {server} MiB / {total} MiB | 4.9G |

The folder shrank by two thirds. I did not manage the function calls, the script always failed with a connection error.

W4A16 quantizes the activations to 16 bits and the weights to 4.
""")
    d.expect(
        "Everything in two tables, typed by hand: figures are told and nothing is shown; the calls honestly failed.",
        {
            "baseline_memory": ["unknown", "pass"],
            "quantize_command": ["pass", "unknown"],
            "sizes": ["unknown", "pass", "fail"],
            "w4a16_memory": ["unknown", "pass"],
            "serve_command": ["pass", "unknown"],
            "server_started": OPEN,
            "conversation": OPEN,
            "server_memory": ["unknown", "pass"],
            "memory_prediction": ["pass", "unknown"],
            "tool_calls": "fail",
            "tool_results": ["fail", "unknown"],
            "completion_counts": ["fail", "unknown"],
            **facts(weights_only=["pass", "unknown"]),
        },
        kinds={"tool_calls": "not_achieved"},
    )


@report("55-own-printing", look=VSCODE)
def own_printing(d: Draft) -> None:
    s = Steps(d=d, chat_ratio=0.4, bits=8)
    s.usual()
    d.playground("page", s.made, [("Name a river in Peru.", "The Amazon begins in Peru.")], dark=True)
    output = (
        '模型调用函数: add\n参数: {"a": 21, "b": 6}\n结果: 27\n'
        '模型调用函数: mul\n参数: {"a": 27, "b": 3}\n结果: 81\n最终回答: (21+6)*3 = 81\n'
    )
    d.terminal("calls", [("python tools.py", output)])
    d.write(f"""
### 基线
原始模型 `lmdeploy chat {s.model}` 的显存占用：
![](images/baseline.png)
### 量化
![](images/awq.png)
![](images/du.png)
### 量化模型的 chat 显存
```
lmdeploy chat {s.made} --model-format awq --cache-max-entry-count 0.4
```
![](images/w4a16.png)
### 服务（KV cache int8）
![](images/serve.png)
### 网页对话
![](images/page.png)
### 服务显存
![](images/memory.png)
### 工具调用
用同一个服务，脚本只打印了函数名、参数和结果：
![](images/calls.png)
### 思考
KV cache 的 int4 量化能让总显存从 20G 降到 11G；W4A16 会把权重压到原来的四分之一。
""")
    d.expect(
        "The script prints names, arguments and results in words of its own; int8 cache; two misconceptions at the end.",
        {
            **right(
                tool_calls=["pass", "unknown"],
                tool_results=["pass", "unknown"],
                completion_counts=OPEN,
                tools_model=["pass", "unknown"],
                tools_server=["pass", "unknown"],
            ),
            **facts(kv_memory="fail", not_all_weights=["fail", "unknown"]),
        },
        kinds={"understanding.kv_memory": "mistaken"},
    )


@report("56-captions-swapped", look=VSCODE)
def captions_swapped(d: Draft) -> None:
    s = Steps(d=d, ratio=0.2, chat_ratio=0.2)
    s.memory("after", s.after)
    s.memory("before", s.before)
    s.quantize("q")
    s.sizes("s")
    s.serve("srv")
    s.talk("t", "Say one word.", "Certainly: ocean.")
    s.memory("m", s.before)
    s.calls("c", 5, 5, 5)
    d.write(f"""
# W4A16

Before quantization I start `lmdeploy chat {s.model}`; VRAM:

![](images/before.png)

Quantizing:

![](images/q.png)

![](images/s.png)

After quantization, `lmdeploy chat {s.made} --model-format awq --cache-max-entry-count 0.2`:

![](images/after.png)

Serving:

![](images/srv.png)

![](images/t.png)

VRAM of the API server:

![](images/m.png)

# Function calling

The same server answers (5+5)*5:

![](images/c.png)
""")
    d.expect(
        "The server's memory is the baseline's again: another picture, the same figure, which a ratio of 0.2 cannot make.",
        {
            **right(memory_prediction="fail", server_memory=["pass", "unknown"], flags_agree=["pass", "unknown"]),
            **facts(),
        },
        kinds={"memory_prediction": ["contradiction", "impossible"]},
    )


@report("57-half-words", look=WINDOWS)
def half_words(d: Draft) -> None:
    s = Steps(d=d, ratio=0.5, chat_ratio=0.5, total=24217, port=23334)
    s.usual()
    d.playground("page", s.made, [("hi", "Hello! How can I help you today?")], width=1000)
    s.tools_server("srv7", "/root/share/internlm2_5-7b-chat", port=23335, options="--quant-policy 0")
    s.calls("calls", 12, 30, 2, model="/root/share/internlm2_5-7b-chat")
    d.write(f"""
**Lab3 hw**

vram 原模型 (lmdeploy chat, default 0.8) 👇
![]({"images/baseline.png"})
auto_awq 👇
![]({"images/awq.png"})
size 👇 3.6G -> 1.5G, 58% smaller
![]({"images/du.png"})
vram w4a16 (`lmdeploy chat {s.made} --model-format awq --cache-max-entry-count 0.5`) 👇
![]({"images/w4a16.png"})
api server 👇
![]({"images/serve.png"})
web chat 👇
![]({"images/page.png"})
vram of api server 👇
![]({"images/memory.png"})

**func call** — 1.8b 不行，换 7b 👇
![]({"images/srv7.png"})
![]({"images/calls.png"})

Q: 二者区别?
A: W4A16 = weight-only, 激活不动 (fp16)。KV int4/int8 = 把 cache 里的 k/v 在线压缩, 不用 calib data, 能存更多 token。
""")
    d.expect(
        "Words and arrows in place of headings; a 7B model for the calls, as the report says.",
        {**right(prose_claims="pass"), **facts(weights_only="pass", kv_online="pass", difference="pass")},
    )
