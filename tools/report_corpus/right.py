"""Reports that are right: Markdown with pictures, in Chinese and English, on several cards."""

from __future__ import annotations

from tools.report_corpus import lab
from tools.report_corpus.draft import Draft
from tools.report_corpus.lab import Gpu, used_mib
from tools.report_corpus.looks import GNOME, SOLARIZED_LIGHT, VSCODE
from tools.report_corpus.registry import report
from tools.report_corpus.verdicts import facts, right, sums, understood

QUANTIZE = """lmdeploy lite auto_awq \\
   {model} \\
  --calib-dataset 'ptb' \\
  --calib-samples 128 \\
  --calib-seqlen 2048 \\
  --w-bits 4 \\
  --w-group-size 128 \\
  --batch-size 1 \\
  --search-scale False \\
  --work-dir {out}"""


SCRIPT = """
functions = {'add': add, 'mul': mul}
for _ in range(2):
    answer = client.chat.completions.create(model=model, messages=messages, tools=tools, temperature=0.1)
    print(answer)
    said = answer.choices[0].message
    call = said.tool_calls[0].function
    value = functions[call.name](**json.loads(call.arguments))
    print(value)
    messages.append({'role': 'assistant', 'content': said.content})
    messages.append({'role': 'environment', 'content': str(value), 'name': 'plugin'})
"""


@report("01-slice-zh", look=VSCODE)
def slice_in_chinese(d: Draft) -> None:
    total, model = 24566, "/root/models/internlm2_5-1_8b-chat"
    made = f"{model}-w4a16-4bit"
    before, quantized, server = used_mib(total, "1_8b"), used_mib(total, "1_8b-4bit"), used_mib(total, "1_8b-4bit", 0.3)
    d.bar("chat_before", before, total)
    d.terminal("awq", [(QUANTIZE.format(model=model, out=made), lab.quantizing(moment=d.moment("quantize")), True)])
    d.terminal(
        "du",
        [("cd models", ""), ("du -sh *", "")],
        figures=["3.6G", "1.5G"],
        folders={
            "models/internlm2_5-1_8b-chat": lab.SIZES["1_8b"],
            "models/internlm2_5-1_8b-chat-w4a16-4bit": lab.SIZES["1_8b-4bit"],
        },
    )
    d.bar("chat_after", quantized, total)
    serve = f"lmdeploy serve api_server \\\n    {made} \\\n    --model-format awq \\\n    --quant-policy 4 \\\n    --cache-max-entry-count 0.3 \\\n    --server-name 0.0.0.0 \\\n    --server-port 23333 \\\n    --tp 1"
    d.terminal("serve", [(serve, lab.serving(23333), True)], figures=["port 23333"])
    d.chat(
        "page",
        made,
        [
            (
                "用一句话说说什么是量化",
                "量化是把模型的参数用更少的位数来表示，从而减少存储和显存，并尽量保持效果的方法。",
            )
        ],
    )
    d.bar("server", server, total)
    d.editor("script", SCRIPT, first=38)
    d.script("calls", "python tools_demo.py", sums(6, 7, 3, model=made))
    d.write(f"""
# 第三关 LMDeploy 量化部署 作业

## 一、基础任务

### 1.1 量化之前

先看没有量化的 internlm2_5-1_8b-chat，用 `lmdeploy chat {model}` 启动（cache 比例默认 0.8）：

![量化前显存](images/chat_before.png)

### 1.2 W4A16 量化

![](images/awq.png)

量化完成后两个文件夹的大小：

![du](images/du.png)

从 3.6G 变成 1.5G，少了约 2.1G。

### 1.3 量化后 chat

```bash
lmdeploy chat {made} --model-format awq
```

![量化后显存](images/chat_after.png)

### 1.4 启动 API 服务（W4A16 + KV cache int4）

![server](images/serve.png)

对话：

![chat](images/page.png)

此时的显存占用：

![显存](images/server.png)

## 二、Function call

还是用上面这个量化后的 1.8B 服务，让模型算 (6+7)*3：

![script](images/script.png)

![call](images/calls.png)

两次调用 add 和 mul，得到 13 和 39，正确。

## 三、W4A16 与 KV cache 量化的区别

- W4A16 只把**权重**量化成 4bit，激活值仍然是 16bit，计算时再反量化回 fp16；embedding 和输出层不量化，所以整个模型不会正好变成四分之一。
- W4A16 需要校准数据（上面的 ptb），离线做一次；KV cache int4/int8 是在线量化，不需要校准数据集。
- KV cache 量化的对象是推理时缓存的 key 和 value。显存总占用由 cache-max-entry-count 决定，int4 不会让 nvidia-smi 的数字变小，而是同样大的缓存可以放下更多 token。
""")
    d.expect(
        "Everything is shown and right: 1.8B on a 24566 MiB slice, pictures of a dark terminal and studio bars.",
        {**right(prose_claims="pass"), **understood()},
    )


@report(
    "02-english-3090",
    look=GNOME,
    prompt=r"(llm) \[\e[1;32m\]wei@ubuntu\[\e[0m\]:\[\e[1;34m\]\w\[\e[0m\]$ ",
    images="img",
)
def english_3090(d: Draft) -> None:
    total, model = 24576, "/home/wei/llm/internlm2_5-1_8b-chat"
    made = "/home/wei/llm/internlm2_5-1_8b-chat-awq"
    card = "NVIDIA GeForce RTX 3090"
    before, quantized, server = (
        used_mib(total, "1_8b"),
        used_mib(total, "1_8b-4bit", 0.5),
        used_mib(total, "1_8b-4bit", 0.5),
    )

    def table(used: int) -> list[Gpu]:
        return [Gpu(name=card, used=used, total=total, watts="112W / 350W", program="...conda3/envs/llm/bin/python")]

    d.smi("fp16-smi", table(before))
    d.terminal(
        "sizes",
        [("cd llm", ""), ("du -sh *", "")],
        figures=["3.6G", "1.5G"],
        folders={
            "llm/internlm2_5-1_8b-chat": lab.SIZES["1_8b"],
            "llm/internlm2_5-1_8b-chat-awq": lab.SIZES["1_8b-4bit"],
        },
    )
    d.smi("awq-smi", table(quantized))
    serve = f"lmdeploy serve api_server {made} --model-format awq --quant-policy 8 --cache-max-entry-count 0.5 --server-port 8000"
    d.terminal("serve", [(serve, lab.serving(8000, pid=20533), True)], figures=["port 8000"])
    talk = (
        "double enter to end input >>> Name three planets.\n\nThree planets of the Solar System are Mars, Jupiter and Saturn.\n\n"
        "double enter to end input >>> "
    )
    d.terminal("client", [("lmdeploy serve api_client http://localhost:8000", talk, True)])
    d.smi("server-smi", table(server), lab.DRIVER_535)
    d.script("tools", "python3 call_tools.py", sums(12, 9, 4, model=made, usage=(267, 43, 304, 51)))
    d.write(f"""
# LMDeploy homework

Card: RTX 3090 (24 GB), lmdeploy 0.6.2.

## Part 1

Step 1. Chat with the original model, default settings:

```sh
lmdeploy chat {model}
```

VRAM while it is running:
![vram fp16](img/fp16-smi.png)

Step 2. Quantize to 4 bits

```sh
lmdeploy lite auto_awq {model} --calib-dataset ptb --calib-samples 128 --calib-seqlen 2048 --w-bits 4 --w-group-size 128 --batch-size 1 --work-dir {made}
```

The folders on disk, 3.6G before and 1.5G after (so it is about 42% of the old size):
![sizes](img/sizes.png)

Step 3. Chat with the quantized model, half of the free memory for the cache

```sh
lmdeploy chat {made} --model-format awq --cache-max-entry-count 0.5
```

![vram awq](img/awq-smi.png)

Step 4. Serve it, with an int8 KV cache

![serve](img/serve.png)
![client](img/client.png)

and the memory of the server

![vram server](img/server-smi.png)

## Part 2: function calling

Same server. The question was "compute (12+9)*4 with the tools".

![tools](img/tools.png)

## What is the difference between W4A16 and KV cache int4/int8?

W4A16 is weight-only: the weights of the linear layers are stored with 4 bits and turned back to fp16 for the matmul, the activations
stay in 16 bits. It needs a calibration set and is done once, offline. The embedding and the lm_head are not quantized, that is why
3.6G does not become 0.9G.

KV cache quantization stores the keys and values with 8 or 4 bits. LMDeploy does that online, per head and per token, so no
calibration data is needed. It does not lower the total VRAM, because LMDeploy takes a fixed share of the free memory for the cache
anyway. What changes is how many tokens fit into it.
""")
    d.expect(
        "Right, in English, on an RTX 3090 with nvidia-smi, KV int8 and the conversation in a terminal.",
        {**right(prose_claims=["pass", "unknown"]), **understood()},
    )


@report("03-a100-7b", look=SOLARIZED_LIGHT, prompt=r"\[\e[1;32m\]zhang@gpu07\[\e[0m\]:\[\e[1;34m\]\w\[\e[0m\]$ ")
def seven_billion(d: Draft) -> None:
    total, model = 81920, "/data/models/internlm2_5-7b-chat"
    made, card = "/data/models/internlm2_5-7b-chat-4bit", "NVIDIA A100-SXM4-80GB"
    before, quantized, server = used_mib(total, "7b"), used_mib(total, "7b-4bit"), used_mib(total, "7b-4bit", 0.2)
    d.smi("1", [Gpu(name=card, used=before, total=total)], lab.DRIVER_535)
    awq = f"lmdeploy lite auto_awq {model} --work-dir {made}"
    d.terminal("2", [(awq, lab.quantizing(32, gpu_gb=6.37), True)])
    d.terminal(
        "3",
        [("du -sh models/*7b*", "")],
        figures=["15G", "4.9G"],
        folders={
            "models/internlm2_5-7b-chat": lab.SIZES["7b"],
            "models/internlm2_5-7b-chat-4bit": lab.SIZES["7b-4bit"],
        },
    )
    d.smi("4", [Gpu(name=card, used=quantized, total=total, load=31)], lab.DRIVER_535)
    serve = f"lmdeploy serve api_server {made} --model-format awq --quant-policy 4 --cache-max-entry-count 0.2 --server-port 23456"
    d.terminal("5", [(serve, lab.serving(23456, pid=8812), True)], figures=["port 23456"])
    d.chat("6", made, [("你是谁", "我是书生·浦语，由上海人工智能实验室开发的大语言模型。")], dark=True)
    d.smi("7", [Gpu(name=card, used=server, total=total)], lab.DRIVER_535)
    d.script("8", "python fc.py", sums(20, 22, 5, model=made, usage=(266, 43, 303, 52)))
    d.write(f"""
学号 2023xxxx  张同学  LMDeploy 作业（7B 版本）

服务器是 A100 80G，我直接用 7B 做了。

1. 量化前 `lmdeploy chat {model}`，显存 {before}MiB
![1](./images/1.png)
2. 量化命令和过程
![2](./images/2.png)
3. 模型大小：15G → 4.9G
![3](./images/3.png)
4. 量化后 `lmdeploy chat {made} --model-format awq`，显存 {quantized}MiB。因为 cache 比例一样是0.8，所以只少了 {before - quantized}MiB，权重少的部分大都给了 kv cache。
![4](./images/4.png)
5. 启动服务，kv int4，比例改成 0.2
![5](./images/5.png)
6. 对话
![6](./images/6.png)
7. 服务的显存 {server}MiB
![7](./images/7.png)
8. 函数调用，同一个服务，(20+22)*5
![8](./images/8.png)

**问题：W4A16 和 KV cache int4/int8 的区别**

W4A16：权重 4 比特、激活 16 比特，只压缩权重，离线量化，需要校准集。KV cache 量化：压缩的是生成时保存的 K 和 V，在线进行，不用校准。
前者让权重占的显存变小；后者让每个 token 的缓存变小，缓存池总大小还是由比例决定，所以总显存不变，能放更多 token。
""")
    d.expect(
        "Right, with the 7B model on an A100 80 GB; figures in the text are those of the pictures.",
        {
            **right(prose_claims="pass"),
            **facts(weights_only="pass", kv_online="pass", kv_memory="pass", difference="pass"),
        },
    )
