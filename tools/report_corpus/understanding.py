"""Reports with little but an answer to the question on W4A16 and KV-cache quantization: right, wrong, negated, silent."""

from __future__ import annotations

from collections.abc import Mapping

from tools.report_corpus.draft import Draft
from tools.report_corpus.registry import report
from tools.report_corpus.verdicts import facts


def answer(d: Draft, text: str, story: str, told: Mapping[str, str | list[str]]) -> None:
    """Write `text`; a fact that is told wrongly is mistaken, one that is not told is at most missing."""
    d.write(text)
    kinds = {f"understanding.{name}": "mistaken" for name, status in told.items() if status == "fail"}
    silent = {name: ["", "missing"] for name in facts() if name.split(".")[1] not in told}
    d.expect(story, facts(**told), kinds={**silent, **kinds})


@report("42-all-right-in-prose")
def all_right(d: Draft) -> None:
    answer(
        d,
        """
# 思考题

W4A16 里的 W4 指权重用 4 比特存储，A16 指激活值用 16 比特，也就是说激活值没有被量化。推理的时候，权重会先反量化成 FP16 再参与矩阵乘法。
需要注意，并不是所有权重都变成了 4 比特：词嵌入层和最后的输出层依然是 16 比特，所以 1.8B 的模型没有缩小到四分之一。

KV Cache int4/int8 则完全不动权重，它把注意力计算中缓存下来的 Key 和 Value 按 head、按 token 在线量化，因此不需要提前准备校准数据。

开了 KV int4 之后，用 nvidia-smi 看到的显存并不会变少，因为缓存池的大小是由 --cache-max-entry-count 定的；好处在于同样大的池子里能放下更多 token，并发更高。
""",
        "Right in all facts, in Chinese prose.",
        dict.fromkeys(("weights_only", "kv_online", "kv_memory", "not_all_weights", "difference"), "pass"),
    )


@report("43-activations-quantized")
def activations(d: Draft) -> None:
    answer(
        d,
        """
## Q: difference between W4A16 and KV cache int4/int8?

W4A16 is a method that quantizes both weights and activations: weights to 4 bit and activations to 16 bit integers.
KV cache quantization only quantizes the key and value tensors and needs no calibration, since it runs online.
""",
        "Says that W4A16 quantizes activations; right on the calibration.",
        {"weights_only": "fail", "kv_online": "pass", "difference": ["pass", "unknown", "fail"]},
    )


@report("44-calibration")
def calibration(d: Draft) -> None:
    answer(
        d,
        """
**简述两者差异**

| | W4A16 | KV Cache int4/int8 |
|---|---|---|
| 对象 | 权重（激活不量化） | K、V 缓存 |
| 校准 | 需要 | 也需要，要先统计 k、v 的最大最小值 |
| 方式 | 离线 | 离线 |
""",
        "A table: weights only is right; KV cache quantization is said to need calibration.",
        {"weights_only": "pass", "kv_online": "fail", "difference": ["pass", "unknown"]},
    )


@report("45-total-memory")
def total_memory(d: Draft) -> None:
    answer(
        d,
        """
# 问答

问：W4A16 量化和 KV cache int4 量化有什么不同？

答：前者量化权重到 4bit，激活值保持 fp16 不变。后者量化 KV cache。
在 cache-max-entry-count 不变的情况下，打开 KV cache int4 以后，nvidia-smi 里显示的总显存占用会下降到原来的四分之一左右。
""",
        "Right on the weights; says that KV int4 lowers the total memory at the same ratio.",
        {"weights_only": "pass", "kv_memory": "fail", "difference": "pass"},
    )


@report("46-negations")
def negations(d: Draft) -> None:
    answer(
        d,
        """
# Answer

A common mistake is to think that W4A16 also quantizes the activations. It does not: they remain in half precision, and only the weights are stored with four bits.

It is not true that KV cache quantization in LMDeploy requires a calibration set; scales are computed online for every token and head.

One could expect the memory shown by nvidia-smi to fall with `--quant-policy 4`. It does not fall, because the cache takes a fixed share of the free memory. The cache only holds more tokens.
""",
        "Right, said by way of what is wrong: misconceptions are named and denied.",
        {"weights_only": "pass", "kv_online": "pass", "kv_memory": "pass", "difference": ["pass", "unknown"]},
    )


@report("47-unsure")
def unsure(d: Draft) -> None:
    answer(
        d,
        """
# 作业

## 思考

W4A16 和 KV Cache 量化的区别我还不是很清楚。激活值是不是也要量化？KV cache 量化需不需要校准？看了文档也没有太明白，希望老师讲一下。
""",
        "Only asks: no fact is told, right or wrong.",
        {},
    )


@report("48-per-token-memory")
def per_token(d: Draft) -> None:
    answer(
        d,
        """
Key differences

* W4A16: weight-only quantization. KV int8/int4: the cache of attention keys/values.
* With KV int4 each token needs about a quarter of the cache memory, so the same pool stores almost four times the tokens.
* W4A16 shrinks the decoder's linear layers to about a quarter, while the embedding table and lm_head stay in bf16.
* AWQ looks at activations from a calibration set to find the important weight channels, but it does not quantize activations.
""",
        "Right; less memory per token, activations looked at but not quantized: both could be misread.",
        {"weights_only": "pass", "kv_memory": ["pass", "unknown"], "not_all_weights": "pass", "difference": "pass"},
    )


@report("49-everything-quartered")
def everything_quartered(d: Draft) -> None:
    answer(
        d,
        """
# L3 answers

W4A16: every single weight of the model, including the embeddings and the output layer, becomes 4-bit, so the whole checkpoint is exactly 1/4 of the fp16 one. Activations are kept in 16 bit.

KV cache int8: needs calibration with a dataset before it can be used, just like AWQ.
""",
        "Two misconceptions: all weights are quartered, KV cache quantization needs calibration. Right on activations.",
        {
            "weights_only": "pass",
            "not_all_weights": "fail",
            "kv_online": "fail",
            "difference": ["pass", "unknown", "fail"],
        },
    )
