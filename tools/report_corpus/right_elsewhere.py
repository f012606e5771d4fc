"""Right reports with less usual evidence: pasted terminals, today's LMDeploy, pictures by URL, photographs."""

from __future__ import annotations

from tools.report_corpus import lab
from tools.report_corpus.draft import Draft
from tools.report_corpus.effects import crop, photographed, resized
from tools.report_corpus.lab import NEW, Gpu, Round, Script, used_mib
from tools.report_corpus.looks import MAC, SOLARIZED_DARK, VSCODE_LIGHT
from tools.report_corpus.registry import report
from tools.report_corpus.steps import Steps
from tools.report_corpus.verdicts import facts, right, sums, understood


@report("04-text-only")
def text_only(d: Draft) -> None:
    total, model, made = 40960, "/root/internlm2_5-1_8b-chat", "/root/internlm2_5-1_8b-chat-awq"
    card, server = "NVIDIA A100-SXM4-40GB", used_mib(40960, "1_8b-4bit", 0.2)
    before, quantized = used_mib(total, "1_8b"), used_mib(total, "1_8b-4bit")

    def table(used: int) -> str:
        return lab.nvidia_smi([Gpu(name=card, used=used, total=total)], lab.DRIVER_535)

    start = lab.serving(23333, pid=733, hints=2)
    for code in ("\x1b[32m", "\x1b[1m", "\x1b[1;33m", "\x1b[36m", "\x1b[0m"):
        start = start.replace(code, "")
    output = sums(8, 14, 3, model=made, usage=(264, 42, 300, 51)).output()
    d.write(f"""
# L1G3000 homework (no screenshots, copied from the terminal)

## original model

```console
root@a100:~# lmdeploy chat {model}
```
second terminal:
```console
root@a100:~# nvidia-smi
{table(before)}```

## auto_awq

```console
root@a100:~# lmdeploy lite auto_awq {model} --w-bits 4 --w-group-size 128 --calib-dataset ptb --work-dir {made}
{lab.quantizing(moment=d.moment("quantize"))}root@a100:~# du -sh internlm2_5-1_8b-chat*
3.6G	internlm2_5-1_8b-chat
1.5G	internlm2_5-1_8b-chat-awq
```

## chat with the 4 bit model

```console
root@a100:~# lmdeploy chat {made} --model-format awq
```
```console
root@a100:~# nvidia-smi
{table(quantized)}```

## api server

```console
root@a100:~# lmdeploy serve api_server {made} --model-format awq --quant-policy 4 --cache-max-entry-count 0.2 --server-port 23333
{start}```
```console
root@a100:~# curl -s http://localhost:23333/v1/chat/completions -H 'Content-Type: application/json' -d '{{"model": "{made}", "messages": [{{"role": "user", "content": "Which river flows through Wuhan?"}}]}}'
{{"id":"3","object":"chat.completion","created":1732701112,"model":"{made}","choices":[{{"index":0,"message":{{"role":"assistant","content":"The Yangtze River flows through Wuhan.","tool_calls":null}},"logprobs":null,"finish_reason":"stop"}}],"usage":{{"prompt_tokens":17,"total_tokens":27,"completion_tokens":10}}}}
root@a100:~# nvidia-smi
{table(server)}```

## functions

(8+14)*3 on the same server:

```console
root@a100:~# python add_mul.py
{output}```

## W4A16 vs. KV cache quantization

Only the weights become int4 with W4A16, activations are kept at fp16. KV cache int4/int8 quantizes the cached keys and values at run time.
For the KV cache no calibration dataset is necessary; for AWQ there is one (ptb here).
With KV int4 the total GPU memory stays as it was, because it is given by the cache ratio, but about four times as many tokens fit.
Not every weight is quantized by AWQ: embeddings and the output head stay 16 bit.
""")
    d.expect(
        "Right without any picture: everything is pasted from a terminal, the conversation is curl's.",
        {**right(), **understood()},
    )


@report("05-h100-new-lmdeploy", look=SOLARIZED_DARK, prompt=r"\[\e[1;34m\]lin@h100\[\e[0m\]:\w$ ")
def new_lmdeploy(d: Draft) -> None:
    total, model, made = 81559, "/models/internlm2_5-1_8b-chat", "/models/internlm2_5-1_8b-chat-w4a16"
    card = "NVIDIA H100 80GB HBM3"
    before, server = used_mib(total, "1_8b", era=NEW), used_mib(total, "1_8b-4bit", 0.4, era=NEW)
    quantized = used_mib(total, "1_8b-4bit", era=NEW)

    def table(used: int) -> list[Gpu]:
        return [Gpu(name=card, used=used, total=total, watts="118W / 700W")]

    d.smi("before", table(before), lab.DRIVER_550)
    quant = f"lmdeploy lite auto_awq {model} --calib-dataset wikitext2 --calib-samples 128 --batch-size 16 --work-dir {made}"
    d.terminal("quant", [(quant, lab.quantizing(dataset="wikitext2"), True)])
    d.terminal(
        "size",
        [("du -sh models/*", "")],
        figures=["3.6G", "1.5G"],
        folders={
            "models/internlm2_5-1_8b-chat": lab.SIZES["1_8b"],
            "models/internlm2_5-1_8b-chat-w4a16": lab.SIZES["1_8b-4bit"],
        },
    )
    d.smi("after", table(quantized), lab.DRIVER_550)
    serve = f"lmdeploy serve api_server {made} --model-format awq --quant-policy 4 --cache-max-entry-count 0.4 --tool-call-parser internlm --server-port 23333"
    d.terminal("server", [(serve, lab.serving(23333, pid=190422, new=True), True)], figures=["port 23333"])
    reply = Script(
        rounds=[
            Round(
                content="Because sunlight is scattered by the air, blue light most of all.",
                usage=(18, 16, 34),
                model=made,
                id="41",
                created=1764121000,
            )
        ],
        old=False,
    )
    d.script("talk", "python ask.py 'Why is the sky blue?'", reply)
    d.smi("server_smi", table(server), lab.DRIVER_550)
    d.script(
        "tools", "python tools.py", sums(17, 25, 2, model=made, old=False, usage=(281, 44, 342, 52), created=1764121404)
    )
    d.write(f"""
# Lab 3 (LMDeploy 0.18.1, H100)

gradio is gone from LMDeploy, so I asked with a small script.

### Memory of the unquantized model

`lmdeploy serve api_server {model}` (default ratio 0.8)

![](images/before.png)

### AWQ

![](images/quant.png)

![](images/size.png)

### Memory of the quantized model, default ratio

`lmdeploy serve api_server {made} --model-format awq`

![](images/after.png)

### The server with KV int4

![](images/server.png)

![](images/talk.png)

![](images/server_smi.png)

### add and mul

(17 + 25) * 2 with that server.

![](images/tools.png)

### The difference

W4A16 quantizes weights to 4 bit and leaves the activations in 16 bit; KV cache int4/int8 quantizes keys and values. AWQ is calibrated, the KV
cache quantization of LMDeploy is not: it happens online. The memory in nvidia-smi is the same with KV int4 as with fp16 KV for a given ratio,
since the pool is a share of free memory. Embedding and output layers keep 16 bits under W4A16.
""")
    d.expect(
        "Right with today's LMDeploy on an H100: other constants of memory, today's openai objects, a tool-call parser.",
        {**right(), **understood()},
    )


@report("13-urls-with-copies", look=VSCODE_LIGHT, images="assets")
def urls_with_copies(d: Draft) -> None:
    s = Steps(d=d, total=24566, ratio=0.5, chat_ratio=0.5, bits=8, bar={"dark": False})
    s.usual()
    s.talk("talk", "推荐一本科幻小说", "推荐刘慈欣的《三体》，它讲述了人类与三体文明之间的接触与冲突。")
    s.tools_server("tools_server", "/root/models/internlm2_5-7b-chat")
    s.calls("calls", 5, 11, 4, model="/root/models/internlm2_5-7b-chat")
    url = "https://raw.githubusercontent.com/someone-else/camp-notes/main/L3/assets"
    d.write(f"""
# 作业三

**量化前的显存占用：** lmdeploy chat {s.model}

![img]({url}/baseline.png)

**量化：**

![img]({url}/awq.png)
![img]({url}/du.png)

**量化后（cache-max-entry-count 0.5）：** `lmdeploy chat {s.made} --model-format awq --cache-max-entry-count 0.5`

![img]({url}/w4a16.png)

**启动api服务，KV int8：**

![img]({url}/serve.png)
![img]({url}/talk.png)
![img]({url}/memory.png)

**Function call（用7b模型重新起一个服务）：**

![img]({url}/tools_server.png)
![img]({url}/calls.png)

**区别**

W4A16量化把模型权重从16bit变成4bit，激活值不动；KV cache的int4/int8量化的是推理过程中的k、v缓存，不改变权重。KV cache量化不用准备校准数据。
""")
    d.expect(
        "Right; pictures are linked by URL and lie in the folder too; the calls are made with the 7B model, and it says so.",
        {**right(), **facts(weights_only="pass", kv_online="pass", difference="pass")},
    )


@report("14-photographs", look=MAC, prompt=r"root@studio-{host}:\w# ", quality=60)
def photographs(d: Draft) -> None:
    s = Steps(
        d=d, total=49140, ratio=0.4, chat_ratio=0.4, card="NVIDIA RTX A6000", made="/root/models/internlm2_5-1_8b-4bit"
    )
    half = resized(0.75)
    s.memory("IMG_2101", s.before, effects=[half])
    s.quantize("IMG_2102", effects=[half])
    s.sizes("IMG_2103.jpg", effects=[photographed(1.3)])
    s.memory("IMG_2104", s.after, effects=[half])
    s.serve("IMG_2105", effects=[half, crop(0, 0.05, 0.9, 1)])
    s.talk("IMG_2106", "what is 2 to the power of 10?", "2 to the power of 10 is 1024.")
    s.memory("IMG_2107", s.serving, effects=[half])
    d.script("IMG_2108", "python func_call.py", sums(9, 16, 4, model=s.made), effects=[half])
    d.write(f"""
# Homework 3 / 第三次作业

## before quantization 量化前

`lmdeploy chat {s.model}`
![](images/IMG_2101.png)

## quantization 量化
![](images/IMG_2102.png)
sorry this one is a photo of my screen:
![](images/IMG_2103.jpg)

## after quantization 量化后
`lmdeploy chat {s.made} --model-format awq --cache-max-entry-count 0.4`
![](images/IMG_2104.png)

## server 服务
![](images/IMG_2105.png)
## chat 对话
![](images/IMG_2106.png)
## vram of server 服务的显存
![](images/IMG_2107.png)

## function calling 函数调用 (same server 同一个服务)
![](images/IMG_2108.png)

## answer 回答
W4A16: weights int4, activations fp16 (激活值不量化). KV int4/int8: 量化的是 kv cache, online, 不需要 calibration.
""")
    d.expect(
        "Right; high-resolution terminals made smaller, one photograph of a screen slightly turned.",
        {
            **right(sizes=["pass", "unknown"], size_prediction=["pass", "unknown"]),
            **facts(weights_only="pass", kv_online="pass", difference=["pass", "unknown"]),
        },
    )
