"""Reports with edited or borrowed pictures."""

from __future__ import annotations

from tools.report_corpus.draft import Draft
from tools.report_corpus.effects import pasted, resized
from tools.report_corpus.lab import Gpu
from tools.report_corpus.looks import GNOME, VSCODE, WENQUANYI
from tools.report_corpus.registry import report
from tools.report_corpus.steps import Steps
from tools.report_corpus.verdicts import ANY, facts, right

AGAINST = ["contradiction", "impossible", "mistaken"]


@report("33-edited-bar", look=VSCODE)
def edited_bar(d: Draft) -> None:
    s = Steps(d=d, ratio=0.4)
    s.usual()
    shown = f"{100 * s.serving / s.total:.2f}%"
    s.memory("memory", 4368, shown=shown)
    s.talk("talk", "深度学习是什么", "深度学习是用多层神经网络从数据中学习表示的方法。")
    s.calls("calls", 8, 23, 2)
    d.write(f"""
# 作业

## 1 原始模型

`lmdeploy chat {s.model}`

![](images/baseline.png)

## 2 量化

![](images/awq.png)
![](images/du.png)

## 3 量化模型

`lmdeploy chat {s.made} --model-format awq`

![](images/w4a16.png)

## 4 服务

![](images/serve.png)
![](images/talk.png)

kv cache int4 之后显存：

![](images/memory.png)

## 5 函数，同一个服务

![](images/calls.png)
""")
    d.expect(
        "The server's bar says 4368 / 24566 MiB beside 46.28%: the figure does not fit its percentage.",
        {**right(server_memory=["unknown", "fail"], memory_prediction=["unknown", "fail"]), **facts()},
        kinds={"server_memory": AGAINST, "memory_prediction": AGAINST},
        review=["server_memory"],
    )


@report("34-edited-table", look=GNOME, prompt=r"(base) gao@dl2:\w$ ")
def edited_table(d: Draft) -> None:
    s = Steps(
        d=d,
        total=24576,
        card="NVIDIA GeForce RTX 3090",
        model="/home/gao/internlm2_5-1_8b-chat",
        made="/home/gao/internlm2_5-1_8b-chat-4bit",
        ratio=0.8,
    )
    s.usual()
    d.smi("memory", [Gpu(name=s.card, used=5893, total=s.total, process=s.serving - 8)])
    s.talk("talk", "你最喜欢什么颜色", "作为人工智能我没有偏好，不过很多人喜欢蓝色。")
    s.calls("calls", 26, 4, 3)
    d.write(f"""
# 进阶作业

原始模型：`lmdeploy chat {s.model}`
![](images/baseline.png)

量化：
![](images/awq.png)
![](images/du.png)

量化之后：`lmdeploy chat {s.made} --model-format awq`
![](images/w4a16.png)

服务：
![](images/serve.png)
![](images/talk.png)

服务的显存只有 5893MiB：
![](images/memory.png)

函数（同一服务）：
![](images/calls.png)
""")
    d.expect(
        "nvidia-smi says 5893 MiB used, and a process that alone holds 20189 MiB.",
        {**right(server_memory=["unknown", "fail"], memory_prediction=["unknown", "fail"]), **facts()},
        kinds={"server_memory": AGAINST, "memory_prediction": AGAINST},
        review=["server_memory"],
    )


@report("35-borrowed-pictures", look=VSCODE)
def borrowed_pictures(d: Draft) -> None:
    s = Steps(d=d, ratio=0.3)
    theirs = d.folder.parent / "01-slice-zh" / "images"
    d.take("1", theirs / "chat_before.png")
    d.take("2", theirs / "awq.png")
    d.take("3", theirs / "du.png", effects=[resized(1.15)])
    d.take("4", theirs / "chat_after.png")
    d.take("5", theirs / "serve.png")
    d.take("6", theirs / "page.png", effects=[resized(0.9)])
    d.take("7", theirs / "server.png")
    s.calls("8", 27, 3, 3)
    d.figures.update({"images/3.png": ["3.6G", "1.5G"], "images/5.png": ["port 23333"]})
    for name, used in (("1", s.before), ("4", s.after), ("7", s.serving)):
        d.figures[f"images/{name}.png"] = [f"{used}/{s.total}"]
    d.write(f"""
# LMDeploy

量化前 lmdeploy chat {s.model}

![](images/1.png)

量化

![](images/2.png)

![](images/3.png)

量化后 lmdeploy chat {s.made} --model-format awq

![](images/4.png)

服务和聊天

![](images/5.png)

![](images/6.png)

![](images/7.png)

函数调用，服务同上

![](images/8.png)
""")
    d.expect(
        "Seven pictures are those of report 01, two of them saved in another size. Each step is shown; that they are shared is to be said beside it.",
        {**right(), **facts()},
        alike=["01-slice-zh"],
    )


@report("36-one-picture-twice", look=VSCODE)
def one_picture_twice(d: Draft) -> None:
    s = Steps(d=d, ratio=0.4)
    s.usual()
    d.take("w4a16", d.path("baseline"))
    d.figures["images/w4a16.png"] = [f"{s.before}/{s.total}"]
    s.talk("talk", "今天适合跑步吗", "如果天气不太热、空气质量良好，就很适合跑步。")
    s.calls("calls", 35, 5, 2)
    d.write(f"""
# 作业

**1. 量化前 lmdeploy chat {s.model} 的显存**

![](images/baseline.png)

**2. 量化**

![](images/awq.png)
![](images/du.png)

**3. 量化后 lmdeploy chat {s.made} --model-format awq 的显存**

![](images/w4a16.png)

**4. 服务**

![](images/serve.png)
![](images/talk.png)
![](images/memory.png)

**5. 函数调用（服务同上）**

![](images/calls.png)
""")
    d.expect(
        "One and the same picture is given for the memory before and after the quantization.",
        {
            **right(w4a16_memory=["unknown", "fail"], baseline_memory=ANY, memory_prediction=ANY, same_card=ANY),
            **facts(),
        },
        kinds={"w4a16_memory": AGAINST, "baseline_memory": AGAINST, "memory_prediction": AGAINST, "same_card": AGAINST},
        review=["w4a16_memory"],
    )


@report("37-edited-size", look=WENQUANYI, prompt=r"root@studio-{host}:\w# ")
def edited_size(d: Draft) -> None:
    s = Steps(d=d, ratio=0.4)
    s.usual()
    # The row of the quantized folder, painted over in another font.
    s.sizes(
        "du", shown=["3.6G", "0.6G"], effects=[pasted((8, 63, 56, 80), "0.6G", ink="#e8e8e8", paper="#1b1d23", size=14)]
    )
    s.talk("talk", "请说一句鼓励的话", "坚持下去，你比自己想象的更有力量。")
    s.calls("calls", 24, 16, 2)
    d.write(f"""
# 第三关作业

## 量化前

`lmdeploy chat {s.model}`

![](images/baseline.png)

## 量化

![](images/awq.png)

## 大小对比

![](images/du.png)

## 量化后

`lmdeploy chat {s.made} --model-format awq`

![](images/w4a16.png)

## 服务

![](images/serve.png)

![](images/talk.png)

![](images/memory.png)

## 函数，服务同上

![](images/calls.png)
""")
    d.expect(
        "The quantized folder's size was painted over: 0.6G is less than its embeddings alone.",
        {**right(sizes=ANY, size_prediction=["fail", "unknown"]), **facts()},
        kinds={"sizes": AGAINST, "size_prediction": "impossible"},
    )
