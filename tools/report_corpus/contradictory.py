"""Reports that contradict themselves, or what can be."""

from __future__ import annotations

from tools.report_corpus.draft import Draft
from tools.report_corpus.lab import used_mib
from tools.report_corpus.looks import GNOME, SOLARIZED_DARK, VSCODE, VSCODE_LIGHT, WENQUANYI
from tools.report_corpus.registry import report
from tools.report_corpus.steps import Steps
from tools.report_corpus.verdicts import ANY, facts, right

AGAINST = ["contradiction", "impossible", "mistaken"]  # a person may call it either
MISSING_OR_AGAINST = ["", "missing", *AGAINST]


@report("23-prose-and-sizes", look=VSCODE)
def prose_and_sizes(d: Draft) -> None:
    s = Steps(d=d, ratio=0.3)
    s.usual()
    s.talk("talk", "早上好", "早上好！祝你今天一切顺利。")
    s.calls("calls", 4, 18, 3)
    d.write(f"""
# 第3关

量化前 (`lmdeploy chat {s.model}`)：

![](images/baseline.png)

启动量化：

![](images/awq.png)

量化后模型文件一共减小了2.9GB：

![](images/du.png)

量化后 (`lmdeploy chat {s.made} --model-format awq`)：

![](images/w4a16.png)

启动 API 服务：

![](images/serve.png)

对话：

![](images/talk.png)

显存：

![](images/memory.png)

函数调用（服务同上）：

![](images/calls.png)

W4A16 量化之后模型的全部权重都变成 4bit，因此整个模型大小变为原来的四分之一；激活值仍是 16bit。KV cache 量化则针对键值缓存，在线完成，无需校准。
""")
    d.expect(
        "The text says 2.9 GB smaller, the picture beside it shows 3.6G and 1.5G; all weights are said to be quartered.",
        {
            **right(prose_claims="fail"),
            **facts(weights_only="pass", kv_online="pass", not_all_weights="fail", difference="pass"),
        },
        kinds={"prose_claims": AGAINST, "understanding.not_all_weights": "mistaken"},
    )


@report("24-two-cards", look=GNOME, prompt=r"(base) root@box:\w# ")
def two_cards(d: Draft) -> None:
    s = Steps(d=d, ratio=0.4)
    s.memory("v1", s.before)
    s.quantize("v2")
    s.sizes("v3")
    other = 49140
    s.memory("v4", used_mib(other, "1_8b-4bit"), total=other, card="Nvidia RTX 6000 Ada")
    s.serve("v5")
    s.talk("v6", "Which is larger, 3/4 or 2/3?", "3/4 is larger: 3/4 = 9/12, and 2/3 = 8/12.")
    s.memory("v7", used_mib(other, "1_8b-4bit", 0.4), total=other, card="Nvidia RTX 6000 Ada")
    s.calls("v8", 19, 2, 4)
    d.write(f"""
# report

1. `lmdeploy chat {s.model}`
   ![](images/v1.png)
2. quantize
   ![](images/v2.png)
   ![](images/v3.png)
3. `lmdeploy chat {s.made} --model-format awq`
   ![](images/v4.png)
4. server
   ![](images/v5.png)
   ![](images/v6.png)
   ![](images/v7.png)
5. tools, same server
   ![](images/v8.png)
""")
    d.expect(
        "The memory before is of a 24566 MiB slice, that after of a 48 GB card: the two cannot be compared.",
        {**right(same_card="fail", memory_prediction=["pass", "unknown"]), **facts()},
        kinds={"same_card": "contradiction"},
    )


@report("25-flags-and-figure", look=WENQUANYI, prompt=r"sun@dl:\w$ ")
def flags_and_figure(d: Draft) -> None:
    s = Steps(d=d, model="/home/sun/internlm2_5-1_8b-chat", made="/home/sun/internlm2_5-1_8b-chat-w4a16", ratio=0.2)
    s.memory("a", s.before)
    s.quantize("b")
    s.sizes("c")
    s.memory("e", s.after)
    s.serve("f")
    s.talk("g", "世界上最高的山是什么山", "世界上最高的山是珠穆朗玛峰，海拔约 8848.86 米。")
    s.memory("h", used_mib(24566, "1_8b-4bit", 0.6))
    s.calls("i", 22, 3, 3)
    d.write(f"""
## 1

原模型 `lmdeploy chat {s.model}` 显存

![](images/a.png)

## 2

![](images/b.png)
![](images/c.png)

## 3

量化模型 `lmdeploy chat {s.made} --model-format awq` 显存

![](images/e.png)

## 4

服务

![](images/f.png)
![](images/g.png)

服务的显存，由于比例只有 0.2，占用很少

![](images/h.png)

## 5

工具，服务同上

![](images/i.png)
""")
    d.expect(
        "The server is started with a ratio of 0.2, and holds what it would at 0.6.",
        {**right(memory_prediction=["fail", "unknown"], flags_agree=ANY), **facts()},
        kinds={"memory_prediction": AGAINST, "flags_agree": AGAINST},
    )


@report("26-other-model-in-calls", look=VSCODE)
def other_model_in_calls(d: Draft) -> None:
    s = Steps(d=d, ratio=0.4, bits=8)
    s.usual()
    s.talk("talk", "你会数学吗", "会一些。你可以给我一道题目，我会一步一步地解给你看。")
    s.calls("calls", 9, 9, 9, model="/root/models/internlm2_5-20b-chat", usage=(262, 42, 297, 51))
    d.write(f"""
# 作业（LMDeploy）

## 任务1

### 量化前 lmdeploy chat
`lmdeploy chat {s.model}`
![](images/baseline.png)
### 量化
![](images/awq.png)
![](images/du.png)
### 量化后 lmdeploy chat
`lmdeploy chat {s.made} --model-format awq`
![](images/w4a16.png)
### api server
![](images/serve.png)
![](images/memory.png)
### 对话
![](images/talk.png)

## 任务2

这里调用函数用的模型就是任务1里面量化好的 internlm2_5-1_8b-chat-w4a16-4bit，服务没有重启。

![](images/calls.png)
""")
    d.expect(
        "The calls are said to be made by the quantized 1.8B; the printed objects name the 20B model.",
        {**right(tools_model="fail", same_model=ANY, tools_server=ANY), **facts()},
        kinds={
            "tools_model": "contradiction",
            "same_model": "contradiction",
            "tools_server": ["missing", "contradiction"],
        },
    )


@report("27-impossible-size", look=SOLARIZED_DARK, prompt=r"root@studio-{host}:\w# ")
def impossible_size(d: Draft) -> None:
    s = Steps(d=d, ratio=0.4, chat_ratio=0.4)
    s.memory("baseline", s.before)
    s.quantize("awq")
    s.sizes("du", new=470_000_000, shown=["3.6G", "449M"])
    s.memory("w4a16", s.after)
    s.serve("serve")
    s.talk("talk", "你是哪家公司做的", "我由上海人工智能实验室开发。")
    s.memory("memory", s.serving)
    s.calls("calls", 30, 12, 2)
    d.write(f"""
# L3 作业

- 量化前：`lmdeploy chat {s.model}`

![](images/baseline.png)

- 量化：

![](images/awq.png)

- 大小，效果非常明显：

![](images/du.png)

- 量化后：`lmdeploy chat {s.made} --model-format awq --cache-max-entry-count 0.4`

![](images/w4a16.png)

- 服务 + 对话 + 显存：

![](images/serve.png)

![](images/talk.png)

![](images/memory.png)

- 函数（同一个服务）：

![](images/calls.png)
""")
    d.expect(
        "A W4A16 folder of the 1.8B of 449 MB cannot be: its two embeddings alone take more.",
        {**right(sizes=["pass", "fail"], size_prediction="fail"), **facts()},
        kinds={"sizes": AGAINST, "size_prediction": "impossible"},
    )


@report("28-impossible-memory", look=VSCODE_LIGHT)
def impossible_memory(d: Draft) -> None:
    s = Steps(d=d, ratio=0.4, chat_ratio=0.4)
    s.usual()
    s.memory("baseline", 2874)
    s.talk("talk", "介绍一下杭州", "杭州是浙江省的省会，以西湖闻名。")
    s.calls("calls", 28, 13, 2)
    d.write(f"""
# 作业三

## 量化前

用 `lmdeploy chat {s.model}` 启动 1.8B 模型，对话中的显存：

![](images/baseline.png)

## 量化

![](images/awq.png)

![](images/du.png)

## 量化后

`lmdeploy chat {s.made} --model-format awq --cache-max-entry-count 0.4`

![](images/w4a16.png)

## API

![](images/serve.png)

![](images/talk.png)

![](images/memory.png)

## 函数调用，同一个服务

![](images/calls.png)
""")
    d.expect(
        "The unquantized model is said to run in 2874 MiB: less than its weights.",
        {**right(baseline_memory=ANY, memory_prediction=["fail", "unknown"]), **facts()},
        kinds={"baseline_memory": AGAINST, "memory_prediction": "impossible"},
        review=[],
    )
