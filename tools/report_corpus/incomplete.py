"""Reports in which something is missing: steps, readable pictures, pictures at all."""

from __future__ import annotations

from tools.report_corpus import lab
from tools.report_corpus.draft import Draft
from tools.report_corpus.effects import blurred, crop, resized
from tools.report_corpus.looks import GNOME, SOLARIZED_LIGHT, VSCODE_LIGHT, WINDOWS
from tools.report_corpus.registry import report
from tools.report_corpus.steps import Steps
from tools.report_corpus.verdicts import ANY, FACTS, FIRST, OPEN, SECOND, all_of, facts, right

MISSING = ["", "missing"]


@report("15-no-baseline", look=VSCODE_LIGHT)
def no_baseline(d: Draft) -> None:
    s = Steps(d=d, ratio=0.4, chat_ratio=0.4, bar={"dark": False})
    s.quantize("q1")
    s.memory("q2", s.after)
    s.serve("q3")
    s.talk("q4", "讲个笑话", "程序员去买菜，老板问要几斤，他说：“从零开始数。”")
    s.memory("q5", s.serving)
    s.calls("q6", 7, 5, 8)
    d.write(f"""
# 作业

## W4A16量化过程

![](images/q1.png)

## 量化后用 chat 验证

`lmdeploy chat {s.made} --model-format awq --cache-max-entry-count 0.4`

![](images/q2.png)

## API服务

![](images/q3.png)

![](images/q4.png)

![](images/q5.png)

## Function Call

同样的服务

![](images/q6.png)

## 问题

W4A16是把模型的权重和激活值都量化成低比特，KV cache量化是把键和值量化成int4或者int8。KV cache量化是在线的，不用校准集。
""")
    d.expect(
        "The memory before quantization and the folders' sizes are not shown; activations are called quantized.",
        {
            **right(baseline_memory="fail", sizes="fail", size_prediction=OPEN, same_card=["pass", "unknown"]),
            **facts(weights_only="fail", kv_online="pass", difference=["pass", "unknown", "fail"]),
        },
        kinds={
            "baseline_memory": "missing",
            "sizes": "missing",
            "size_prediction": MISSING,
            "understanding.weights_only": "mistaken",
        },
    )


@report("16-no-second-task", look=GNOME, prompt=r"(py310) \[\e[1;32m\]liu@lab\[\e[0m\]:\[\e[1;34m\]\w\[\e[0m\]$ ")
def no_second_task(d: Draft) -> None:
    s = Steps(
        d=d,
        total=24576,
        card="NVIDIA GeForce RTX 3090",
        model="/home/liu/models/internlm2_5-1_8b-chat",
        made="/home/liu/models/internlm2_5-1_8b-chat-w4a16",
        ratio=0.4,
    )
    s.usual()
    s.talk("talk", "3 的平方是多少", "3 的平方是 9。")
    d.write(f"""
### 任务一

1) 没量化的模型 (`lmdeploy chat {s.model}`) 占用显存

![x](images/baseline.png)

2) 量化

![x](images/awq.png)

3) 看一下大小

![x](images/du.png)

4) 再 chat ：`lmdeploy chat {s.made} --model-format awq`

![x](images/w4a16.png)

5) 起服务

![x](images/serve.png)

6) 对话

![x](images/talk.png)

7) 显存

![x](images/memory.png)

### 两种量化的区别

W4A16 量化权重到 4 位，激活保持 16 位。KV cache int4/int8 量化的是缓存的 K、V。两种方法都需要用校准数据集校准之后才能使用。

### 任务二

还没来得及做，之后补上。
""")
    d.expect(
        "The second task is not done, and it says so; KV cache quantization is said to need calibration.",
        {
            **all_of("pass", *FIRST),
            **all_of("fail", "tools_server", "tool_calls"),
            **all_of(OPEN, "tool_results", "completion_counts", "tools_model"),
            **facts(weights_only="pass", kv_online="fail", difference="pass"),
        },
        kinds={
            "tools_server": ["missing", "not_achieved"],
            "tool_calls": ["missing", "not_achieved"],
            "tool_results": ["", "missing", "not_achieved"],
            "completion_counts": ["", "missing", "not_achieved"],
            "tools_model": ["", "missing", "not_achieved"],
            "understanding.kv_online": "mistaken",
        },
    )


@report("17-blurred", look=SOLARIZED_LIGHT, prompt=r"zhao@srv:\w$ ")
def blurred_pictures(d: Draft) -> None:
    s = Steps(d=d, ratio=0.4)
    s.memory("p1.jpg", s.before, effects=[resized(0.45), blurred(1.6), resized(2)])
    s.quantize("p2")
    s.sizes("p3.jpg", effects=[resized(0.35), blurred(1.4), resized(2)])
    s.memory("p4", s.after)
    s.serve("p5")
    s.talk("p6", "什么是显存", "显存是显卡上的内存，用来存放模型权重、缓存和中间结果。")
    s.memory("p7", s.serving)
    s.calls("p8", 21, 4, 3)
    for name in ("p1.jpg", "p3.jpg"):
        d.unreadable(name)
    d.write(f"""
# LMDeploy作业

## 量化前显存占用

![](images/p1.jpg)

## 量化

![](images/p2.png)

## 量化前后的文件大小 (du -sh)

![](images/p3.jpg)

## 量化后显存占用

`lmdeploy chat {s.made} --model-format awq`

![](images/p4.png)

## 启动 api_server

![](images/p5.png)

## 网页对话

![](images/p6.png)

## 服务显存占用

![](images/p7.png)

## 函数调用 （1.8B 同一服务）

![](images/p8.png)
""")
    d.expect(
        "Two pictures, of the memory before and of the sizes, are so blurred that nobody can read them: a person must ask.",
        {
            **right(baseline_memory="unknown", sizes="unknown", size_prediction=OPEN, same_card=["pass", "unknown"]),
            **facts(),
        },
        kinds={"size_prediction": MISSING},
        review=["baseline_memory", "sizes"],
    )


@report("18-pictures-not-there")
def pictures_not_there(d: Draft) -> None:
    s = Steps(d=d, ratio=0.4)
    s.talk("Snipaste_7", "hello", "Hello! How can I help you today?")
    d.write(r"""
# 第三关作业

## 1.量化前显存占用
![](C:\Users\chen\Pictures\Snipaste_1.png)
## 2.W4A16量化
![](C:\Users\chen\Pictures\Snipaste_2.png)
## 3.量化前后模型大小
![](C:\Users\chen\Pictures\Snipaste_3.png)
## 4.量化后显存占用
![](C:\Users\chen\Pictures\Snipaste_4.png)
## 5.启动api_server
![](C:\Users\chen\Pictures\Snipaste_5.png)
## 6.服务的显存占用
![](C:\Users\chen\Pictures\Snipaste_6.png)
## 7.与模型对话
![](images/Snipaste_7.png)
## 8.函数调用结果
![](C:\Users\chen\Pictures\Snipaste_8.png)
""")
    d.expect(
        "All pictures but one stayed on the student's machine: nothing can be decided, and nothing is to be called missing.",
        {
            **all_of(
                "unknown", "baseline_memory", "sizes", "w4a16_memory", "server_memory", "server_started", "tool_calls"
            ),
            **all_of(OPEN, "size_prediction", "memory_prediction", "same_card", "tool_results", "completion_counts"),
            "quantize_command": "unknown",
            "serve_command": "unknown",
            "conversation": "pass",
            **facts(),
        },
        review=["baseline_memory", "sizes", "w4a16_memory", "server_memory", "tool_calls"],
    )


@report("19-urls-only")
def urls_only(d: Draft) -> None:
    host = "https://user-images.githubusercontent.com/10204412"
    model, made = "/root/model/internlm2_5-1_8b-chat", "/root/model/internlm2_5-1_8b-chat-w4a16-4bit"
    d.write(f"""
## Homework of lesson 3

**VRAM before quantization** (`lmdeploy chat {model}`)

![image]({host}/386200101-7d1e.png)

**Quantization**

```
lmdeploy lite auto_awq {model} --calib-dataset 'ptb' --calib-samples 128 --calib-seqlen 2048 --w-bits 4 --w-group-size 128 --batch-size 1 --search-scale False --work-dir {made}
```

**Size of the model folders**

![image]({host}/386200102-99a0.png)

**VRAM after quantization**

![image]({host}/386200103-11bc.png)

**API server with KV cache int4**

```
lmdeploy serve api_server {made} --model-format awq --quant-policy 4 --cache-max-entry-count 0.4 --server-port 23333
```

![image]({host}/386200104-02c5.png)

**Chat**

![image]({host}/386200105-ab01.png)

**VRAM of the server**

![image]({host}/386200106-ab02.png)

**Function call**

![image]({host}/386200107-cc12.png)
""")
    d.expect(
        "Commands are text; every picture is on a web site and not at hand. What they show is for a person to see.",
        {
            **all_of("pass", "quantize_command", "serve_command", "served_model_made"),
            **all_of(
                "unknown",
                "baseline_memory",
                "sizes",
                "w4a16_memory",
                "server_memory",
                "conversation",
                "tool_calls",
                "server_started",
            ),
            **all_of(OPEN, "size_prediction", "memory_prediction", "same_card", "tool_results", "completion_counts"),
            **facts(),
        },
        review=["baseline_memory", "sizes", "w4a16_memory", "server_memory", "conversation", "tool_calls"],
    )


@report("20-cropped", look=WINDOWS, prompt=r"root@autodl-{host}:\w# ")
def cropped(d: Draft) -> None:
    s = Steps(d=d, ratio=0.4, port=23334)
    s.memory("c1", s.before, effects=[crop(0.47, 0.45, 0.8, 1)])  # without the percentage
    s.quantize("c2")
    s.sizes("c3", effects=[crop(0, 0.2, 0.8, 1)])
    s.memory("c4", s.after)
    s.serve("c5", effects=[crop(0, 0, 1, 0.62)])  # not down to "Uvicorn running"
    d.figures["images/c5.png"] = []
    s.memory("c6", s.serving)
    output = lab.chatting(s.made, [("hi", "Hi there! What would you like to know?")], ratio=0.4, bits=4, awq=True)
    d.terminal(
        "c7",
        [(f"lmdeploy chat {s.made} --model-format awq --quant-policy 4 --cache-max-entry-count 0.4", output, True)],
    )
    s.calls("c8", 44, 6, 2)
    d.write(f"""
Task 1

before: (lmdeploy chat {s.model})

![](images/c1.png)

awq:

![](images/c2.png) ![](images/c3.png)

after: (lmdeploy chat {s.made} --model-format awq)

![](images/c4.png)

serve:

![](images/c5.png)

VRAM:

![](images/c6.png)

chat:

![](images/c7.png)

Task 2 (same server)

![](images/c8.png)
""")
    d.expect(
        "Pictures cut at their edges; the start-up log ends before the server listens. The conversation is lmdeploy chat's.",
        {
            **right(
                server_started=["unknown", "pass"],
                conversation=["pass", "unknown"],
                flags_agree=["pass", "unknown"],
                tools_model=["pass", "unknown"],
            ),
            **facts(),
        },
    )


@report("21-claims-only")
def claims_only(d: Draft) -> None:
    d.write("""
# 实验报告

我先用 lmdeploy chat 运行了原始模型，显存占用 20616 / 24566 MiB。

然后使用 lmdeploy lite auto_awq 命令完成了 W4A16 量化，模型从 3.6G 减小到 1.5G。

量化后再次运行，显存占用下降到 11300 MiB 左右。

接着用 lmdeploy serve api_server 启动了服务，开启了 KV cache int4 量化，与模型进行了对话，模型回答正确。

最后完成了函数调用，模型正确调用了 add 和 mul 函数，得到结果 16。

总结：实验非常成功，我收获很大！
""")
    d.expect(
        "A report in words only: it claims everything, and shows nothing.",
        {**all_of(OPEN, *FIRST), **all_of(OPEN, *SECOND), "prose_claims": OPEN, **facts()},
        kinds=dict.fromkeys((*FIRST, *SECOND, "prose_claims"), MISSING)
        | {f"understanding.{name}": MISSING for name in FACTS},
    )


@report("22-second-task-only", look=VSCODE_LIGHT, images="pic")
def only_the_second_task(d: Draft) -> None:
    s = Steps(d=d, ratio=0.4)
    seven = "/root/models/internlm2_5-7b-chat"
    s.tools_server("server7b", seven, port=23456)
    s.calls("result", 16, 3, 7, model=seven, usage=(266, 42, 302, 52))
    d.write("""
# 只做了任务2

```python
tools = [
    {'type': 'function', 'function': {'name': 'add', 'description': 'a plus b', 'parameters': {'type': 'object', 'properties': {'a': {'type': 'number'}, 'b': {'type': 'number'}}, 'required': ['a', 'b']}}},
    {'type': 'function', 'function': {'name': 'mul', 'description': 'a times b', 'parameters': {'type': 'object', 'properties': {'a': {'type': 'number'}, 'b': {'type': 'number'}}, 'required': ['a', 'b']}}},
]
messages = [{'role': 'user', 'content': 'Compute (16+3)*7'}]
```

启动 7B 的服务：

![](pic/server7b.png)

``` 运行结果 ```

![](pic/result.png)
""")
    first = ("baseline_memory", "quantize_command", "sizes", "w4a16_memory", "server_memory", "conversation")
    d.expect(
        "Only the second task, with the 7B model, as it says; nothing of the first is shown.",
        {
            **all_of("fail", *first),
            "size_prediction": OPEN,
            "memory_prediction": OPEN,
            "serve_command": OPEN,
            **all_of("pass", *SECOND),
            "server_started": ANY,
            **facts(),
        },
        kinds=dict.fromkeys(first, "missing"),
    )
