"""Right reports that are no Markdown: a notebook, a page, a Word document, a PDF."""

from __future__ import annotations

import html
import shutil

from tools.report_corpus import documents, lab
from tools.report_corpus.browser import data_uri
from tools.report_corpus.draft import Draft
from tools.report_corpus.lab import used_mib
from tools.report_corpus.looks import GNOME, SOLARIZED_DARK, WENQUANYI, XTERM
from tools.report_corpus.registry import report
from tools.report_corpus.steps import Steps
from tools.report_corpus.verdicts import facts, right, sums


@report("06-notebook", look=XTERM, prompt=r"root@dsw-4410:\w# ")
def notebook(d: Draft) -> None:
    total, model, made = 24576, "/mnt/workspace/internlm2_5-1_8b-chat", "/mnt/workspace/internlm2_5-1_8b-chat-4bit"
    s = Steps(d=d, total=total, card="NVIDIA A10", driver=lab.DRIVER_470, model=model, made=made, ratio=0.3)
    s.memory("before", s.before)
    s.serve("serve")
    s.talk("talk", "你好，请问 1 公里是多少米？", "1 公里等于 1000 米。")
    s.memory("server", s.serving)
    pictures = {name: d.path(name) for name in ("before", "serve", "talk", "server")}
    after = lab.nvidia_smi([lab.Gpu(name="NVIDIA A10", used=s.after, total=total)], lab.DRIVER_470)
    code = (
        "from openai import OpenAI\nclient = OpenAI(api_key='none', base_url='http://localhost:23333/v1')\n"
        "model_name = client.models.list().data[0].id\n"
        "r = client.chat.completions.create(model=model_name, messages=messages, tools=tools)\nprint(r)\n"
        "call = r.choices[0].message.tool_calls[0].function\nout = functions[call.name](**json.loads(call.arguments))\nprint(out)\n"
        "messages += [{'role': 'assistant', 'content': r.choices[0].message.content}, {'role': 'environment', 'content': str(out), 'name': 'plugin'}]\n"
        "r = client.chat.completions.create(model=model_name, messages=messages, tools=tools)\nprint(r)\n"
        "call = r.choices[0].message.tool_calls[0].function\nprint(functions[call.name](**json.loads(call.arguments)))"
    )
    d.write(
        documents.notebook(
            [
                documents.text_cell("# 第3关：LMDeploy\n\n在 DSW 的 A10 上完成。"),
                documents.text_cell(
                    f"## 量化前的显存\n\n`lmdeploy chat {model}`\n\n![before](attachment:before.png)",
                    before=pictures["before"],
                ),
                documents.text_cell("## 量化"),
                documents.code_cell(
                    f"!lmdeploy lite auto_awq {model} --calib-dataset ptb --w-bits 4 --w-group-size 128 --work-dir {made}",
                    lab.quantizing(moment=77),
                ),
                documents.code_cell(f"!du -sh {model} {made}", f"3.6G\t{model}\n1.5G\t{made}\n"),
                documents.text_cell(f"## 量化后的显存\n\n在终端 `lmdeploy chat {made} --model-format awq`，然后："),
                documents.code_cell("!nvidia-smi", after),
                documents.text_cell(
                    "## 启动服务\n\n![serve](attachment:serve.png)\n\n![talk](attachment:talk.png)",
                    serve=pictures["serve"],
                    talk=pictures["talk"],
                ),
                documents.text_cell("服务的显存\n\n![server](attachment:server.png)", server=pictures["server"]),
                documents.text_cell("## 工具调用\n\n同一个 1.8B 的量化服务，(18+24)*2："),
                documents.code_cell(code, sums(18, 24, 2, model=made, usage=(265, 42, 301, 52)).output()),
                documents.text_cell(
                    "## 思考\n\nW4A16 的 A16 表示激活值是 16 位的，没有被量化，4 位的只有权重。KV Cache 量化是在线做的，无需校准；同样比例下显存总量不会减少，但能缓存的 token 变多。"
                ),
            ]
        ),
        "report.ipynb",
    )
    shutil.rmtree(d.folder / "images")
    d.expect(
        "Right; a notebook with attachments, shell cells and their outputs.",
        {**right(), **facts(weights_only="pass", kv_online="pass", kv_memory="pass", difference=["pass", "unknown"])},
    )


@report("07-word", look=WENQUANYI, prompt=r"(lmdeploy) root@intern-studio-60412:\w# ")
def word(d: Draft) -> None:
    s = Steps(d=d, ratio=0.5, chat_ratio=0.5, port=23335)
    s.usual()
    s.talk("talk", "中国最长的河是哪一条？", "中国最长的河流是长江，全长约 6300 公里。")
    s.calls("calls", 13, 8, 5)
    picture = {name: d.path(name) for name in ("baseline", "awq", "du", "w4a16", "serve", "memory", "talk", "calls")}
    documents.word_document(
        [
            ("1", "LMDeploy 量化部署进阶实践"),
            ("", "姓名：王某某　　日期：11 月 30 日"),
            ("2", "一、量化前"),
            ("", f"运行 lmdeploy chat {s.model}，显存占用如图："),
            picture["baseline"],
            ("2", "二、W4A16 量化"),
            picture["awq"],
            ("", "量化后模型大小由 3.6G 变为 1.5G："),
            picture["du"],
            ("2", "三、量化后"),
            ("code", f"lmdeploy chat {s.made} --model-format awq --cache-max-entry-count 0.5"),
            picture["w4a16"],
            ("2", "四、API 服务与对话"),
            picture["serve"],
            picture["talk"],
            ("", "服务显存："),
            picture["memory"],
            ("2", "五、Function call"),
            ("", "仍然使用 1.8B 的 W4A16 服务，(13+8)*5="),
            picture["calls"],
            ("2", "六、两种量化的区别"),
            ("", "W4A16 量化的是模型权重，激活值仍用 16 位计算，属于离线量化，需要校准数据集。"),
            (
                "",
                "KV Cache int4/int8 量化的是缓存的键和值，是在线量化，不需要校准。它能让同样大小的显存容纳更多 token，总显存由预留比例决定。",
            ),
        ],
        d.folder / "作业.docx",
    )
    shutil.rmtree(d.folder / "images")
    d.expect(
        "Right; a Word document with embedded pictures.",
        {
            **right(prose_claims=["pass", "unknown"]),
            **facts(weights_only="pass", kv_online="pass", kv_memory="pass", difference="pass"),
        },
    )


@report("08-pdf", look=SOLARIZED_DARK)
def pdf(d: Draft) -> None:
    s = Steps(d=d, total=24566, ratio=0.2, bits=8)
    s.usual()
    s.talk(
        "talk",
        "Give me a tip for learning Chinese.",
        "Read a short text aloud every day, and look up only the words that come again.",
    )
    s.calls("calls", 10, 14, 6)
    shown = {
        name: f'<p><img width="640" src="{data_uri(d.path(name))}"></p>'
        for name in ("awq", "du", "serve", "talk", "calls")
    }
    bars = {name: f'<p><img src="{data_uri(d.path(name))}"></p>' for name in ("baseline", "w4a16", "memory")}
    body = f"""<h1>Assignment 3: LMDeploy</h1>
<h2>1. Memory before quantization</h2><p>lmdeploy chat {s.model}</p>{bars["baseline"]}
<h2>2. Quantization with AWQ</h2>{shown["awq"]}<p>Sizes of the two folders:</p>{shown["du"]}
<h2>3. Memory after quantization</h2><p>lmdeploy chat {s.made} --model-format awq</p>{bars["w4a16"]}
<h2>4. Server</h2>{shown["serve"]}<h3>Conversation</h3>{shown["talk"]}<h3>Memory of the server</h3>{bars["memory"]}
<h2>5. Function calling</h2><p>(10 + 14) * 6 with the server above.</p>{shown["calls"]}
<h2>6. Comparison</h2><p>W4A16 stores the weights with four bits and computes with 16-bit activations.
KV cache quantization stores the keys and values of past tokens with four or eight bits; it is done online and needs no calibration.</p>"""
    (d.folder / "report.pdf").write_bytes(d.browser.pdf(documents.web_page("Assignment 3", body)))
    shutil.rmtree(d.folder / "images")
    d.expect(
        "Right; printed to PDF from a browser.",
        {**right(), **facts(weights_only=["pass", "unknown"], kv_online="pass", difference="pass")},
    )


@report("09-html", look=GNOME, prompt=r"user@lab-pc:\w$ ", images="files")
def page(d: Draft) -> None:
    total, made, model = 16376, "/home/user/awq-1_8b", "/home/user/internlm2_5-1_8b-chat"
    s = Steps(
        d=d, total=total, card="NVIDIA GeForce RTX 4080", driver=lab.DRIVER_550, model=model, made=made, ratio=0.4
    )
    s.memory("m1", s.before)
    s.sizes("m2")
    s.memory("m3", s.after)
    s.serve("m4")
    s.talk("m5", "Who wrote 'Hamlet'?", "'Hamlet' was written by William Shakespeare.", dark=True)
    s.memory("m6", used_mib(total, "1_8b-4bit", 0.4))
    s.calls("m7", 33, 9, 2)
    awq = (
        f"lmdeploy lite auto_awq {model} \\\n  --w-bits 4 --w-group-size 128 \\\n  --calib-dataset c4 --work-dir {made}"
    )
    body = f"""<h1>LMDeploy, my notes</h1>
<p>GPU: RTX 4080 16 GB.</p>
<h2>Before</h2><pre><code>lmdeploy chat {model}</code></pre><img src="files/m1.png">
<h2>AWQ</h2><pre>{html.escape(awq)}</pre><img src="files/m2.png">
<p>The folder is 2.1 GB smaller.</p>
<h2>After</h2><pre><code>lmdeploy chat {made} --model-format awq</code></pre><img src="files/m3.png">
<h2>Server and chat</h2><img src="files/m4.png"><br><img src="files/m5.png"><p>VRAM:</p><img src="files/m6.png">
<h2>Tools</h2><p>(33+9)*2, same server</p><img src="files/m7.png">
<h2>Q&amp;A</h2><ul><li>W4A16: 4-bit weights, 16-bit activations. Activations are <b>not</b> quantized.</li>
<li>KV int4/int8: keys and values are quantized, not the weights. No calibration needed, as it is done on the fly.</li></ul>"""
    d.write(documents.web_page("LMDeploy", body), "index.html")
    d.expect(
        "Right; a page with pictures beside it, RTX 4080.",
        {**right(prose_claims="pass"), **facts(weights_only="pass", kv_online="pass", difference="pass")},
    )
