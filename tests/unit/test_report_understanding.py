"""What is understood of sentences on W4A16 and KV cache quantization: right, wrong, negated, hedged, unrelated."""

import pytest

from lab3.reports.understanding_text import cell_statements, statements_in

RIGHT, WRONG, UNCERTAIN, SILENT = "right", "wrong", "uncertain", "silent"


def heard(text, fact, label=""):
    """What a text says on a fact."""
    said = {each.right for each in statements_in(text, label=label) if each.fact == fact}
    if {True, False} <= said:
        return "both"
    return RIGHT if True in said else WRONG if False in said else UNCERTAIN if None in said else SILENT


WEIGHTS_ONLY = [
    (RIGHT, "W4A16 只量化权重，激活保持 16 位。"),
    (RIGHT, "W4A16 表示权重 4bit、激活 16bit。"),
    (RIGHT, "W4A16中的A16是指激活值仍用FP16。"),
    (RIGHT, "W4A16 仅对权重做 4 比特量化，不对激活做量化。"),
    (RIGHT, "采用 W4A16 时，激活值不会被量化。"),
    (RIGHT, "W4A16是weight-only的量化方式。"),
    (RIGHT, "AWQ 量化的是权重，而激活值依旧是半精度。"),
    (RIGHT, "W4A16 把参数压成 int4，计算时还原为 fp16 再和 16 位的激活相乘。"),
    (RIGHT, "W4A16：权重用4位存储，激活用16位表示。"),
    (RIGHT, "W4A16 量化权重而不是激活值。"),
    (RIGHT, "W4A16 量化只作用于权重。"),
    (RIGHT, "W4A16 quantizes only the weights."),
    (RIGHT, "With W4A16 the weights are stored in 4 bits and the activations stay in fp16."),
    (RIGHT, "W4A16 quantizes the weights, not the activations."),
    (RIGHT, "In W4A16 activations are not quantized."),
    (RIGHT, "W4A16 means 4-bit weights and 16-bit activations."),
    (RIGHT, "W4A16 is weight-only quantization."),
    (RIGHT, "AWQ packs weights to int4 while activations remain bf16."),
    (RIGHT, "W4A16 does not quantize activations at all."),
    (RIGHT, "The A16 in W4A16 says that activations are kept in half precision."),
    (RIGHT, "W4A16 touches the weights alone; activations are left in 16 bits."),
    (WRONG, "W4A16 会把权重和激活值都量化到低精度。"),
    (WRONG, "W4A16 量化同时作用于权重和激活。"),
    (WRONG, "W4A16将模型的参数和激活值一起压缩成4bit。"),
    (WRONG, "W4A16量化的对象是权重与激活值。"),
    (WRONG, "W4A16 不仅量化权重，还量化激活值。"),
    (WRONG, "W4A16 是对激活进行 4 位量化。"),
    (WRONG, "W4A16 quantizes both the weights and the activations."),
    (WRONG, "W4A16 converts weights and activations to 4 bits."),
    (WRONG, "With W4A16 the activations are quantized too."),
    (WRONG, "W4A16 compresses the activations of the model as well as its weights."),
    (SILENT, "AWQ 是激活感知的权重量化方法。"),
    (SILENT, "AWQ 根据激活值的分布挑选重要的权重再进行量化。"),
    (SILENT, "AWQ uses activation statistics to scale the weights before they are quantized."),
    (SILENT, "W4A16 的校准会统计激活值的范围。"),
    (SILENT, "执行 W4A16 量化用了二十分钟。"),
    (SILENT, "激活环境：conda activate lmdeploy"),
    (SILENT, "W4A16 会量化激活值吗？"),
    (SILENT, "有人以为 W4A16 也量化激活值。"),
    (SILENT, "It is a misconception that W4A16 quantizes the activations."),
    (SILENT, "Does W4A16 quantize the activations?"),
    (SILENT, "W8A8 quantizes weights and activations to 8 bits."),
    (SILENT, "W8A8 量化权重和激活值。"),
    (UNCERTAIN, "W4A16 可能也会量化激活值。"),
    (UNCERTAIN, "W4A16 might quantize the activations as well."),
]

KV_ONLINE = [
    (RIGHT, "KV cache 量化不需要校准。"),
    (RIGHT, "KV Cache int4 量化无需校准数据集。"),
    (RIGHT, "KV 量化是在线进行的。"),
    (RIGHT, "W4A16 需要校准，而 KV cache 量化不需要。"),
    (RIGHT, "W4A16要用校准集离线量化，KV cache int8则不用校准。"),
    (RIGHT, "与W4A16不同，KV量化不用标定数据。"),
    (RIGHT, "KV cache 的量化在线完成，逐 token、逐 head 计算缩放系数。"),
    (RIGHT, "kv int4 在推理时动态量化，没有校准的过程。"),
    (RIGHT, "键值缓存量化免校准。"),
    (RIGHT, "KV cache quantization needs no calibration data."),
    (RIGHT, "KV cache quantization is done online, per head and per token."),
    (RIGHT, "No calibration is needed for KV cache int4."),
    (RIGHT, "Unlike W4A16, KV cache quantization works without calibration."),
    (RIGHT, "KV cache quantization, unlike W4A16, does not need calibration."),
    (RIGHT, "W4A16 needs a calibration set, KV cache quantization does not."),
    (RIGHT, "Calibration is required for W4A16 but not for KV cache quantization."),
    (RIGHT, "The KV cache is quantized on the fly."),
    (RIGHT, "For KV int8 we don't need to calibrate anything."),
    (WRONG, "KV cache 量化需要校准。"),
    (WRONG, "两者都需要校准数据。"),
    (WRONG, "两种方法都要先做校准。"),
    (WRONG, "W4A16 和 KV cache 量化都需要校准数据集。"),
    (WRONG, "KV cache int8 量化必须使用校准集。"),
    (WRONG, "KV Cache量化也需要经过标定。"),
    (WRONG, "Both methods need calibration."),
    (WRONG, "KV cache quantization requires a calibration dataset."),
    (WRONG, "W4A16 and KV cache quantization both need calibration data."),
    (WRONG, "KV int4 depends on calibration, just as AWQ does."),
    (SILENT, "W4A16 需要校准数据。"),
    (SILENT, "这里用 ptb 作为校准集。"),
    (SILENT, "W4A16 requires calibration with ptb."),
    (SILENT, "KV cache 量化需要校准吗？"),
    (SILENT, "旧版 LMDeploy 的 KV 量化需要用 kv_qparams 校准。"),
    (SILENT, "Older versions calibrated the KV cache with kv_qparams."),
    (SILENT, "有人认为 KV 量化需要校准。"),
    (SILENT, "KV cache 在推理时保存键和值。"),
    (SILENT, "If the KV cache needed calibration, it would take longer."),
    (RIGHT, "有人认为 KV 量化需要校准，其实 KV 量化不需要校准。"),
    (UNCERTAIN, "KV cache 量化可能需要校准。"),
    (UNCERTAIN, "KV cache quantization probably needs calibration."),
    (RIGHT, "Neither calibration nor an offline step is needed for the KV cache quantization."),
    (RIGHT, "LMDeploy 的 KV cache int4/int8 属于在线量化。"),
]

KV_MEMORY = [
    (RIGHT, "KV cache int4 不会降低总显存占用。"),
    (RIGHT, "KV 量化之后同样的显存可以放下更多的 token。"),
    (RIGHT, "显存占用由 cache-max-entry-count 决定，和 KV 的位数无关。"),
    (RIGHT, "KV量化后显存占用不变，但能缓存更多token。"),
    (RIGHT, "KV cache 量化可以支持更长的上下文。"),
    (RIGHT, "开启 KV int4 并没有减少显存，因为比例是固定的。"),
    (RIGHT, "KV cache quantization does not lower the total VRAM."),
    (RIGHT, "KV int4 holds more tokens in the same memory."),
    (RIGHT, "With KV int4 the VRAM stays the same, but about four times as many tokens fit."),
    (RIGHT, "The total memory is set by --cache-max-entry-count."),
    (RIGHT, "KV cache quantization allows larger batches."),
    (RIGHT, "With KV cache int8 nvidia-smi's figure remains unchanged."),
    (WRONG, "KV cache int4 降低了总的显存占用。"),
    (WRONG, "KV 量化使整体显存占用下降。"),
    (WRONG, "KV cache int4 lowers the total VRAM."),
    (WRONG, "KV cache quantization reduces the overall GPU memory shown by nvidia-smi."),
    (SILENT, "KV cache int8 减少每个 token 的缓存大小。"),
    (SILENT, "KV cache quantization reduces the memory per token of the cache."),
    (SILENT, "W4A16 降低了总显存占用。"),
    (SILENT, "总显存为 24GB。"),
    (SILENT, "W4A16 lowers the total VRAM of the weights."),
    (SILENT, "KV int4 会降低总显存吗？"),
    (SILENT, "把比例从 0.8 改成 0.4 之后总显存下降了。"),
    (UNCERTAIN, "KV int4 可能降低总显存占用。"),
]

NOT_ALL = [
    (RIGHT, "embedding 和输出层不量化，仍是 16 位。"),
    (RIGHT, "W4A16 只量化线性层的权重。"),
    (RIGHT, "词嵌入层和 lm_head 保持 fp16。"),
    (RIGHT, "W4A16 并不是把所有权重都量化。"),
    (RIGHT, "The embedding and the lm_head are not quantized."),
    (RIGHT, "Only the linear layers are packed to 4 bits by W4A16."),
    (RIGHT, "W4A16 leaves embeddings and the output layer in 16 bits."),
    (RIGHT, "W4A16 packs everything except the embeddings."),
    (WRONG, "W4A16 把所有权重压缩到原来的四分之一。"),
    (WRONG, "W4A16 使整个模型变为原来的1/4。"),
    (WRONG, "W4A16 makes the whole model a quarter of its size."),
    (WRONG, "W4A16 quarters all weights of the model."),
    (SILENT, "W4A16 量化后模型从 3.6G 变成 1.5G。"),
    (SILENT, "W4A16 halves the load time."),
    (SILENT, "W4A16 用于整个模型。"),
    (SILENT, "KV int4 把缓存压到四分之一。"),
    (SILENT, "KV int4 takes a quarter of the bytes."),
    (UNCERTAIN, "理论上 W4A16 使整个模型变为原来的四分之一。"),
    (RIGHT, "W4A16 does not quarter the whole model because the embeddings stay in 16 bits."),
]


SENTENCES = [
    (
        {"weights_only": SILENT, "kv_online": RIGHT},
        "W4A16是一种静态的权重量化，需要校准数据；KV Cache量化则是在推理过程中对key/value做量化，不需要校准集。",
    ),
    (
        {"weights_only": SILENT, "kv_online": SILENT, "kv_memory": SILENT},
        "KV Cache 量化针对的是推理过程中产生的键值缓存，主要目的是减少长文本推理时的显存占用；W4A16 针对的是模型权重。",
    ),
    ({"weights_only": RIGHT}, "W4A16 将模型权重量化为4bit整数，而激活值保持为16bit浮点数。"),
    ({"weights_only": RIGHT}, "W4A16量化：对模型的权重进行4bit量化，对激活值使用16bit。"),
    ({"weights_only": RIGHT}, "W4A16中，W代表权重，A代表激活值，即权重量化为4位，激活值量化为16位。"),
    ({"weights_only": RIGHT}, "W4A16 表示将权重（weight）量化为 4 bit，激活（activation）保持 16 bit 不变。"),
    (
        {"weights_only": SILENT, "kv_online": SILENT},
        "KV Cache int4/int8 量化不改变模型权重，只是把推理时的K和V用低比特保存。",
    ),
    (
        {"weights_only": RIGHT},
        "W4A16 quantization reduces the precision of weights to 4 bits while keeping activations at 16 bits.",
    ),
    (
        {"weights_only": SILENT, "kv_online": SILENT},
        "KV cache quantization is applied at runtime to the keys and values; the weights stay as they are.",
    ),
    (
        {"weights_only": SILENT, "kv_online": SILENT, "kv_memory": SILENT},
        "Both approaches reduce memory, but W4A16 acts on the weights and KV quantization on the cache.",
    ),
    ({"kv_memory": SILENT}, "W4A16 量化后模型权重占用的显存变小，KV cache 量化后缓存占用的显存变小。"),
    ({"kv_memory": SILENT}, "KV cache 量化能够降低显存占用。"),
    ({"weights_only": SILENT}, "两者的区别在于：W4A16 量化的是权重，KV Cache 量化的是注意力的键值缓存。"),
    ({"kv_online": SILENT}, "二者都能减少显存，但是KV量化不影响模型权重，也不需要重新量化模型。"),
    ({"kv_online": RIGHT}, "KV Cache量化可以在启动服务时通过 --quant-policy 参数直接开启，无需额外的校准步骤。"),
    (
        {"kv_online": RIGHT},
        "W4A16 需要先用校准集跑一遍得到缩放因子，KV cache 的缩放因子是推理时实时算出来的，所以不用校准。",
    ),
    (
        {"kv_online": RIGHT},
        "W4A16 needs calibration data because it is done offline, whereas the KV cache is quantized online.",
    ),
    ({"kv_online": RIGHT}, "KV cache quantization doesn't require any calibration; it happens online."),
    ({"kv_online": RIGHT}, "We do not calibrate for KV int4."),
    ({"kv_online": WRONG}, "KV cache quantization also needs a calibration set to find the scales."),
    ({"kv_online": WRONG}, "无论是W4A16还是KV cache int4，都需要校准数据。"),
    ({"kv_online": WRONG}, "KV cache int4 量化前需要先对数据进行校准。"),
    ({"weights_only": WRONG}, "W4A16 量化会同时量化权重和激活值，KV cache 量化只量化键值。"),
    ({"weights_only": SILENT}, "W4A16把权重和激活值分别量化到4位和16位。"),
    ({"weights_only": RIGHT}, "W4A16: weights -> int4, activations -> fp16"),
    ({"weights_only": WRONG}, "W4A16量化适用于模型的权重和激活值。"),
    ({"weights_only": WRONG}, "W4A16 quantization is typically applied to the model's weights and activations."),
    ({"weights_only": WRONG}, "W4A16 quantises the activations"),
    (
        {"weights_only": SILENT},
        "The difference between W4A16 and KV cache quantization: the former quantizes weights, the latter the cache.",
    ),
    ({"kv_memory": RIGHT}, "显存没有因为 KV int4 而减少，因为 LMDeploy 按比例预分配。"),
    ({"kv_memory": RIGHT}, "使用 KV int4 后，nvidia-smi 显示的显存和之前一样。"),
    ({"kv_memory": RIGHT}, "KV cache 量化后，总显存并不会变化，只是能存的 token 更多。"),
    ({"kv_memory": WRONG}, "KV cache int4 cuts the total GPU memory in half."),
    ({"kv_memory": WRONG}, "KV Cache int4 量化后总显存占用从 20G 降到 11G。"),
    ({"kv_memory": SILENT}, "由于设置了 cache-max-entry-count 0.4，总显存从20G降到11G。"),
    ({"kv_memory": RIGHT}, "KV cache 的 int4 量化让同样的显存可容纳约四倍的 token。"),
    ({"not_all_weights": RIGHT}, "模型没有缩小到四分之一，因为词表嵌入和输出头没有量化。"),
    ({"not_all_weights": UNCERTAIN}, "W4A16 makes the model four times smaller."),
    ({"not_all_weights": RIGHT}, "KV cache 是在线量化的，放得下更多 token。词嵌入和 lm_head 都没有量化。"),
    ({"not_all_weights": RIGHT}, "The KV cache is quantized online. Only the linear layers are packed, by the way."),
    ({"not_all_weights": SILENT}, "KV cache 量化不涉及 embedding。"),
    ({"kv_memory": SILENT}, "使用 W4A16 + KV int4 之后，总显存由 20.6G 降到 11.4G。"),
    ({"kv_memory": SILENT}, "With W4A16 and a quantized KV cache, the total VRAM fell to 11 GB."),
    ({"kv_online": UNCERTAIN}, "启用 W4A16 和 KV int4，需要准备校准集。"),
    ({"kv_online": WRONG}, "W4A16 和 KV cache int4 都需要校准集。"),
    ({"kv_online": WRONG}, "KV Cache 量化需要在推理前用数据集统计 scale 和 zero point。"),
    ({"kv_online": RIGHT}, "Unlike W4A16, the KV cache is quantized per token and requires no dataset."),
    ({"not_all_weights": RIGHT}, "lm_head is left at fp16 so 3.6G only shrinks to 1.5G."),
    (
        {"weights_only": SILENT, "kv_online": SILENT, "kv_memory": SILENT, "not_all_weights": SILENT},
        "W4A16量化会影响精度，KV量化几乎不影响精度。",
    ),
    ({"weights_only": SILENT}, "量化（Quantization）是指将权重和激活值用更低比特表示的技术。"),
    ({"weights_only": SILENT}, "Quantization maps weights and activations to lower precision."),
    ({"weights_only": RIGHT}, "W4A16 里的激活不是4位。"),
    ({"weights_only": RIGHT}, "不同于W8A8，W4A16不会量化激活。"),
    ({"weights_only": RIGHT}, "W8A8 对权重和激活都量化，而 W4A16 只对权重量化。"),
    (
        {"weights_only": RIGHT},
        "Unlike W8A8, which quantizes weights and activations, W4A16 only quantizes the weights.",
    ),
    ({"kv_online": RIGHT}, "KV cache 量化不像 W4A16 那样需要校准。"),
    ({"kv_online": RIGHT}, "KV Cache 量化不需要像 W4A16 一样使用校准数据。"),
    ({"kv_online": RIGHT}, "KV cache quantization does not need calibration, W4A16 does."),
    ({"weights_only": SILENT}, "W4A16 的计算过程中权重会先反量化成 fp16，与激活值做矩阵乘法。"),
    ({"weights_only": SILENT}, "W4A16通过校准激活值的分布来确定权重的缩放因子。"),
    ({"weights_only": SILENT}, "The activations are used to calibrate W4A16."),
    ({"kv_online": RIGHT}, "W4A16需要校准数据来统计激活，KV 则不需要。"),
]


@pytest.mark.parametrize(("expected", "sentence"), SENTENCES)
def test_what_a_sentence_says_of_several_facts(expected, sentence):
    assert {fact: heard(sentence, fact) for fact in expected} == expected


@pytest.mark.parametrize(("expected", "sentence"), WEIGHTS_ONLY)
def test_what_a_sentence_says_of_the_activations(expected, sentence):
    assert heard(sentence, "weights_only") == expected


@pytest.mark.parametrize(("expected", "sentence"), KV_ONLINE)
def test_what_a_sentence_says_of_calibration(expected, sentence):
    assert heard(sentence, "kv_online") == expected


@pytest.mark.parametrize(("expected", "sentence"), KV_MEMORY)
def test_what_a_sentence_says_of_the_memory(expected, sentence):
    assert heard(sentence, "kv_memory") == expected


@pytest.mark.parametrize(("expected", "sentence"), NOT_ALL)
def test_what_a_sentence_says_of_the_layers(expected, sentence):
    assert heard(sentence, "not_all_weights") == expected


@pytest.mark.parametrize(
    ("row", "column", "cell", "fact", "expected"),
    [
        ("是否需要校准", "KV Cache 量化", "否", "kv_online", RIGHT),
        ("校准", "KV cache int4", "不需要", "kv_online", RIGHT),
        ("calibration", "KV cache int8", "not needed", "kv_online", RIGHT),
        ("calibration", "KV cache int8", "needed", "kv_online", WRONG),
        ("需要校准吗", "KV 量化", "是", "kv_online", WRONG),
        ("calibration", "W4A16", "needed", "kv_online", SILENT),
        ("量化对象", "W4A16", "权重和激活值", "weights_only", WRONG),
        ("量化对象", "W4A16", "仅权重", "weights_only", RIGHT),
        ("W4A16", "量化对象", "仅权重", "weights_only", RIGHT),
        ("激活值", "W4A16", "16bit", "weights_only", RIGHT),
        ("activations", "W4A16", "16-bit", "weights_only", RIGHT),
        ("KV int8", "Calibration?", "no", "kv_online", RIGHT),
        ("显存", "8 GB", "7 GB", "kv_memory", SILENT),
    ],
)
def test_what_a_cell_of_a_table_says(row, column, cell, fact, expected):
    said = {each.right for each in cell_statements(row, column, cell) if each.fact == fact}
    assert said == {RIGHT: {True}, WRONG: {False}, SILENT: set()}[expected]


def test_a_heading_names_the_method_of_the_sentences_below():
    assert heard("不需要校准数据。", "kv_online", label="KV Cache 量化") == RIGHT


def test_a_label_line_names_the_method_of_the_lines_below():
    assert heard("W4A16：\n只量化权重。\nKV cache：\n不需要校准。", "kv_online") == RIGHT


def test_a_method_carried_over_from_another_sentence_accuses_nobody():
    assert heard("KV cache 量化可以支持更长的上下文。需要校准数据集 ptb。", "kv_online") != WRONG


def test_the_former_and_the_latter_are_the_methods_named_before():
    text = "W4A16 和 KV cache 量化有什么不同？前者只量化权重，后者不需要校准。"
    assert (heard(text, "weights_only"), heard(text, "kv_online")) == (RIGHT, RIGHT)


def test_another_quantization_in_the_same_sentence_is_not_w4a16():
    assert heard("W4A16 只量化权重，W8A8 量化权重和激活。", "weights_only") == RIGHT


def test_from_sixteen_bits_to_four_is_no_sixteen_bits():
    assert heard("W4A16 把权重和激活值从 FP16 量化到 INT4。", "weights_only") == WRONG


def test_a_quotation_is_as_it_is_written():
    (said,) = [each for each in statements_in("结论：KV cache 量化，不需要校准。") if each.fact == "kv_online"]
    assert said.quote == "结论：KV cache 量化，不需要校准。"
