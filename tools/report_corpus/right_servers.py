"""Reports that are right, from students with cards of their own: pictures in all ways of linking."""

from __future__ import annotations

from tools.report_corpus import lab
from tools.report_corpus.draft import Draft
from tools.report_corpus.lab import Gpu, used_mib
from tools.report_corpus.looks import WENQUANYI, WINDOWS, XTERM
from tools.report_corpus.registry import report
from tools.report_corpus.verdicts import facts, right, sums

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


@report("11-bom-xterm", look=XTERM, prompt=r"[root@node3 \W]# ", images="shots", quality=60)
def byte_order_mark(d: Draft) -> None:
    total, model, made = 40960, "/opt/llm/internlm2_5-1_8b-chat", "/opt/llm/w4a16"
    card = "NVIDIA A100-PCIE-40GB"
    before, quantized, server = (
        used_mib(total, "1_8b"),
        used_mib(total, "1_8b-4bit", 0.4),
        used_mib(total, "1_8b-4bit", 0.4),
    )
    d.smi("a", [Gpu(name=card, used=before, total=total, watts="41W / 250W")], lab.DRIVER_470)
    d.terminal(
        "b",
        [
            (
                f"lmdeploy lite auto_awq {model} --w-bits 4 --w-group-size 128 --work-dir {made}",
                lab.quantizing(moment=d.moment("quantize")),
                True,
            )
        ],
    )
    d.terminal(
        "c.jpg",
        [("du -sh llm/internlm2_5-1_8b-chat llm/w4a16", "")],
        figures=["3.6G", "1.5G"],
        folders={"llm/internlm2_5-1_8b-chat": lab.SIZES["1_8b"], "llm/w4a16": lab.SIZES["1_8b-4bit"]},
    )
    d.smi("d", [Gpu(name=card, used=quantized, total=total, watts="44W / 250W")], lab.DRIVER_470)
    serve = f"lmdeploy serve api_server {made} \\\n--model-format awq --quant-policy 4 \\\n--cache-max-entry-count 0.4 --server-port 23333"
    d.terminal("e", [(serve, lab.serving(23333, pid=977, hints=1), True)], figures=["port 23333"])
    d.chat("f", made, [("What is the capital of Australia?", "The capital of Australia is Canberra.")])
    d.smi("g", [Gpu(name=card, used=server, total=total, watts="52W / 250W")], lab.DRIVER_470)
    d.script("h", "python funcs.py", sums(2.5, 4, 6, model=made, usage=(268, 44, 306, 53)))
    d.write(
        f"""
LMDeploy 实践报告
=================

环境：A100 40G，lmdeploy 0.5.3

量化前显存
----------
`lmdeploy chat {model}`

<img src="shots/a.png" width="70%">

量化
----
<img src="shots/b.png" width="70%">

<img src="shots/c.jpg">

量化后显存
----------
`lmdeploy chat {made} --model-format awq --cache-max-entry-count 0.4`

<img src="shots/d.png" width="70%">

API server + 对话
-----------------
<img src="shots/e.png">
<img src="shots/f.png">

服务显存：

<img src="shots/g.png">

Function Calling
----------------
在同一个服务上跑，(2.5+4)*6=39

<img src="shots/h.png">

简答
----
| 方法 | 量化对象 | 是否需要校准 | 显存 |
| --- | --- | --- | --- |
| W4A16 | 仅权重，激活保持 fp16 | 需要校准数据 | 权重显存明显减少（词嵌入和输出层仍为 16bit） |
| KV cache int4/int8 | 推理时的 key/value | 不需要，在线量化 | 总显存不变，同样的显存可以缓存更多 token |
""",
        encoding="utf-8-sig",
        newline="\r\n",
    )
    d.expect(
        "Right, UTF-8 with BOM and CRLF, HTML images, JPEG pictures of a light xterm, decimals in the calls, answers in a table.",
        {
            **right(),
            **facts(
                weights_only="pass",
                kv_online="pass",
                kv_memory="pass",
                not_all_weights=["pass", "unknown"],
                difference="pass",
            ),
        },
    )


@report("12-two-gpus", look=WENQUANYI, prompt=r"➜  \[\e[1;36m\]\W\[\e[0m\] ")
def two_gpus(d: Draft) -> None:
    total, model, made = 24564, "/mnt/nvme/internlm2_5-1_8b-chat", "/mnt/nvme/internlm2_5-1_8b-chat-4bit"
    card = "NVIDIA GeForce RTX 4090"
    before, quantized, server = (
        used_mib(total, "1_8b"),
        used_mib(total, "1_8b-4bit"),
        used_mib(total, "1_8b-4bit", 0.25),
    )

    def both(used: int) -> list[Gpu]:
        return [
            Gpu(name=card, used=17, total=total, watts="22W / 450W"),
            Gpu(name=card, used=used, total=total, watts="64W / 450W"),
        ]

    d.smi("smi_fp16", both(before), lab.DRIVER_550)
    d.terminal(
        "quant",
        [
            (
                f"CUDA_VISIBLE_DEVICES=1 lmdeploy lite auto_awq {model} --work-dir {made}",
                lab.quantizing(moment=d.moment("quantize")),
                True,
            )
        ],
    )
    d.terminal(
        "ls",
        [("cd nvme", ""), ("ls -lh internlm2_5-1_8b-chat-4bit", ""), ("du -sh internlm2_5-1_8b-chat*", "")],
        figures=["3.6G", "1.5G"],
        folders={
            "nvme/internlm2_5-1_8b-chat": lab.SIZES["1_8b"],
            "nvme/internlm2_5-1_8b-chat-4bit": lab.SIZES["1_8b-4bit"],
        },
    )
    d.smi("smi_awq", both(quantized), lab.DRIVER_550)
    serve = f"CUDA_VISIBLE_DEVICES=1 lmdeploy serve api_server {made} --model-format awq --quant-policy 4 --cache-max-entry-count 0.25"
    d.terminal("api", [(serve, lab.serving(23333, pid=60231), True)], figures=["port 23333"])
    d.chat("talk", made, [("写一句关于秋天的诗", "落叶轻敲石阶，秋风把黄昏读得很慢。")])
    d.smi("smi_api", both(server), lab.DRIVER_550)
    d.script("func", "python func.py", sums(15, 6, 2, model=made, usage=(264, 42, 299, 51)))
    d.write(f"""
## 作业 L3

> 两张 4090，只用第 1 号卡（0 号卡空着）

#### 量化前

```
CUDA_VISIBLE_DEVICES=1 lmdeploy chat {model}
```
![[smi_fp16.png]]

#### 量化

![[quant.png]]
![[ls.png]]

#### 量化后 chat

```
CUDA_VISIBLE_DEVICES=1 lmdeploy chat {made} --model-format awq
```
![[smi_awq.png]]

#### api_server (W4A16 + KV int4)

![[api.png]]
![[talk.png]]
![[smi_api.png]]

#### 工具调用

服务不变，跑 func.py，先加 15+6=21 再乘 2 得 42。

![[func.png]]
""")
    d.expect(
        "Right, two cards of which the second is used, wiki-style pictures; the question is not answered at all.",
        {**right(), **facts()},
        kinds={
            f"understanding.{name}": ["", "missing"]
            for name in ("weights_only", "kv_online", "kv_memory", "not_all_weights", "difference")
        },
    )


@report(
    "10-gbk-windows",
    look=WINDOWS,
    prompt=r"\[\e[1;33m\]root@autodl-container-7d11\[\e[0m\]:\w# ",
    images="图片",
    quality=50,
)
def windows_gbk(d: Draft) -> None:
    total, model, made = 24564, "/root/autodl-tmp/internlm2_5-1_8b-chat", "/root/autodl-tmp/internlm2_5-1_8b-chat-w4a16"
    card = "NVIDIA GeForce RTX 4090"
    before, quantized, server = (
        used_mib(total, "1_8b"),
        used_mib(total, "1_8b-4bit", 0.4),
        used_mib(total, "1_8b-4bit", 0.4),
    )
    gpu = {"name": card, "total": total, "watts": "25W / 450W"}
    d.smi("量化前", [Gpu(used=before, **gpu)], lab.DRIVER_550)  # type: ignore[arg-type]
    d.terminal(
        "大小.jpg",
        [("cd autodl-tmp", ""), ("du -sh ./*", "")],
        figures=["3.6G", "1.5G"],
        folders={
            "autodl-tmp/internlm2_5-1_8b-chat": lab.SIZES["1_8b"],
            "autodl-tmp/internlm2_5-1_8b-chat-w4a16": lab.SIZES["1_8b-4bit"],
        },
    )
    d.smi("量化后", [Gpu(used=quantized, **gpu)], lab.DRIVER_550)  # type: ignore[arg-type]
    serve = f"lmdeploy serve api_server {made} --model-format awq --cache-max-entry-count 0.4 --quant-policy 4 --server-port 6006"
    d.terminal("启动", [(serve, lab.serving(6006, pid=1530, requests=1), True)], figures=["port 6006"])
    d.chat("对话.jpg", made, [("李白是哪个朝代的诗人？", "李白是唐代著名的浪漫主义诗人，被后人称为“诗仙”。")])
    d.smi("服务", [Gpu(used=server, **gpu)], lab.DRIVER_550)  # type: ignore[arg-type]
    d.script("函数", "python tool.py", sums(31, 11, 3, model=made, usage=(265, 43, 302, 52)))
    d.write(
        f"""
# 书生大模型实战营 第三关

## 1 W4A16 量化

原模型对话时显存占用（{before}MiB）：

![](图片/量化前.png)

量化命令：

    lmdeploy lite auto_awq {model} --calib-dataset ptb --calib-samples 128 --calib-seqlen 1024 --w-bits 4 --w-group-size 128 --work-dir {made}

量化前后文件大小分别为 3.6G、1.5G：

![](图片/大小.jpg)

用 `lmdeploy chat {made} --model-format awq --cache-max-entry-count 0.4` 启动后的显存（{quantized}MiB）：

![](图片/量化后.png)

## 2 部署成 API

![](图片/启动.png)

浏览器里的对话：

![](图片/对话.jpg)

显存占用还是 {server}MiB，因为比例同样是0.4，kv 量化不改变缓存池的大小：

![](图片/服务.png)

## 3 函数调用

模型：还是上面量化后的1.8B。

![](图片/函数.png)

## 4 思考题

W4A16 是对权重做 4bit 量化，激活值不量化，还是16位。KV Cache int4/int8 是对注意力里的键值缓存做量化，推理时实时量化，不需要校准。W4A16 要提前用校准数据做一遍。
KV 量化之后同样的显存可以存更多的 token，总显存看 cache-max-entry-count。
""",
        encoding="gb18030",
        newline="\r\n",
    )
    d.expect(
        "Right, GBK with Windows line ends and Chinese file names, JPEG pictures, the quantize command only as text.",
        {
            **right(prose_claims=["pass", "unknown"]),
            **facts(weights_only="pass", kv_online="pass", kv_memory="pass", difference="pass"),
        },
    )
