"""Reports whose calls of functions, or whose served model, contradict the rest."""

from __future__ import annotations

from dataclasses import replace

from tools.report_corpus import lab
from tools.report_corpus.draft import Draft
from tools.report_corpus.looks import SOLARIZED_DARK, VSCODE, WINDOWS, XTERM
from tools.report_corpus.registry import report
from tools.report_corpus.steps import Steps
from tools.report_corpus.verdicts import ANY, facts, right, sums

AGAINST = ["contradiction", "impossible", "mistaken"]  # a person may call it either
MISSING_OR_AGAINST = ["", "missing", *AGAINST]


@report("29-total-tokens", look=XTERM, prompt=r"[user@login ~]$ ")
def total_tokens(d: Draft) -> None:
    s = Steps(
        d=d,
        total=40960,
        card="NVIDIA A100-SXM4-40GB",
        ratio=0.4,
        model="/home/user/internlm2_5-1_8b-chat",
        made="/home/user/internlm2_5-1_8b-chat-int4",
    )
    s.usual()
    s.talk("talk", "Hi, who are you?", "I am an AI assistant developed by Shanghai AI Laboratory.")
    script = sums(14, 17, 2, model=s.made, usage=(265, 43, 302, 52))
    script.rounds[0] = replace(script.rounds[0], usage=(265, 43, 318))
    d.script("calls", "python fc.py", script)
    d.write(f"""
# Homework

Original: `lmdeploy chat {s.model}` ![](images/baseline.png)

AWQ: ![](images/awq.png) ![](images/du.png)

Quantized: `lmdeploy chat {s.made} --model-format awq` ![](images/w4a16.png)

Server: ![](images/serve.png) ![](images/talk.png) ![](images/memory.png)

Functions, same server: ![](images/calls.png)
""")
    d.expect(
        "A printed completion counts 265 + 43 = 318 tokens.",
        {**right(completion_counts="fail"), **facts()},
        kinds={"completion_counts": AGAINST},
    )


@report("30-second-round", look=VSCODE)
def second_round(d: Draft) -> None:
    s = Steps(d=d, ratio=0.5)
    s.usual()
    s.talk("talk", "推荐一道家常菜", "番茄炒蛋：先炒蛋，再炒番茄，最后合在一起调味。")
    script = sums(11, 7, 3, model=s.made, usage=(264, 42, 300, 51))
    last = script.rounds[1]
    script.rounds[1] = replace(last, content="Now I multiply 26 by 3.", call=("mul", {"a": 26, "b": 3}), result="78")
    d.script("calls", "python tool_use.py", script)
    d.write(f"""
# 任务一

1. 原始模型 `lmdeploy chat {s.model}`
![](images/baseline.png)
2. awq
![](images/awq.png)
![](images/du.png)
3. 量化模型 `lmdeploy chat {s.made} --model-format awq`
![](images/w4a16.png)
4. 服务
![](images/serve.png)
![](images/talk.png)
![](images/memory.png)

# 任务二

用同一个服务计算 (11+7)*3

![](images/calls.png)
""")
    d.expect(
        "add gives 18, and mul is called with 26: the second round does not follow from the first.",
        {**right(tool_results="fail"), **facts()},
        kinds={"tool_results": ["contradiction", "not_achieved", "mistaken"]},
    )


@report("31-wrong-product", look=WINDOWS, prompt=r"root@autodl-{host}:\w# ")
def wrong_product(d: Draft) -> None:
    s = Steps(d=d, total=24564, card="NVIDIA GeForce RTX 4090", driver=lab.DRIVER_550, ratio=0.4, bits=8)
    s.usual()
    s.talk("talk", "写一个成语", "水滴石穿。")
    script = sums(12, 7, 3, model=s.made, usage=(264, 42, 300, 51))
    script.rounds[1] = replace(script.rounds[1], result="59")
    d.script("calls", "python tool_use.py", script)
    d.write(f"""
## 1. 原始模型

    lmdeploy chat {s.model}

![](images/baseline.png)

## 2. 量化

![](images/awq.png)
![](images/du.png)

## 3. 量化模型

    lmdeploy chat {s.made} --model-format awq

![](images/w4a16.png)

## 4. 服务

![](images/serve.png)
![](images/talk.png)
![](images/memory.png)

## 5. 函数 (同一服务)

![](images/calls.png)
""")
    d.expect(
        "mul(19, 3) prints 59, where it is 57.",
        {**right(tool_results="fail"), **facts()},
        kinds={"tool_results": ["contradiction", "impossible", "mistaken"]},
    )


@report("32-folder-never-made", look=SOLARIZED_DARK, prompt=r"yang@node1:\w$ ")
def folder_never_made(d: Draft) -> None:
    s = Steps(d=d, ratio=0.4)
    s.usual()
    other = replace(s, made="/root/share/teacher/internlm2-chat-7b-4bits")
    other.serve("serve")
    d.chat("talk", other.made, [("你好呀", "你好！很高兴见到你。")])
    s.calls("calls", 6, 15, 5, model=other.made)
    d.write(f"""
# 第三关

### 量化前的显存
`lmdeploy chat {s.model}`

![](images/baseline.png)

### 量化
![](images/awq.png)

![](images/du.png)

### 量化后的显存
`lmdeploy chat {s.made} --model-format awq`

![](images/w4a16.png)

### 部署刚才量化出来的模型
![](images/serve.png)

![](images/talk.png)

### 函数调用，同一个服务
![](images/calls.png)
""")
    d.path("memory").unlink()
    d.figures.pop("images/memory.png")
    d.expect(
        "One model is quantized, a teacher's other one is served, and said to be the one just quantized.",
        {
            **right(
                served_model_made="fail",
                same_model=["fail", "unknown"],
                server_memory="fail",
                memory_prediction=ANY,
                flags_agree=ANY,
                tools_model=ANY,
                serve_command=ANY,
                same_card="pass",
            ),
            **facts(),
        },
        kinds={
            "served_model_made": ["contradiction", "missing"],
            "same_model": "contradiction",
            "server_memory": "missing",
            "tools_model": "contradiction",
            "memory_prediction": MISSING_OR_AGAINST,
            "flags_agree": AGAINST,
            "serve_command": AGAINST,
        },
    )
