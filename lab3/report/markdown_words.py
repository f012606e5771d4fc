"""The sentences of the homework, in English and Chinese."""

from __future__ import annotations

HOMEWORK: dict[str, tuple[str, str]] = {
    "hw_title": ("Homework: LMDeploy quantization of {model}", "作业：使用 LMDeploy 量化部署 {model}"),
    "hw_intro": (
        "Every command, output and figure below was recorded by lab3 {version} while it did the lab; its own checks "
        "give {points} of {most} points.",
        "以下所有命令、输出和数据均由 lab3 {version} 在实验过程中记录；其自动检查得分为 {points} / {most}。",
    ),
    "hw_command": ("Command:", "命令："),
    "hw_output": ("Output, as lab3 recorded it:", "输出（由 lab3 记录）："),
    "hw_not_shown": ("This step was not shown: {why}", "此步骤未能展示：{why}"),
    "hw_no_evidence": ("there is no evidence of it", "没有相应记录"),
    "hw_task1": ("Task 1: W4A16 and an int4 KV cache", "任务一：W4A16 量化与 int4 KV 缓存"),
    "hw_before": ("1.1 The unquantized model", "1.1 量化前的模型"),
    "hw_before_text": (
        "The unquantized model is served with a 16-bit KV cache and `--cache-max-entry-count {ratio}`.",
        "以 16 位 KV 缓存和 `--cache-max-entry-count {ratio}` 启动未量化的模型。",
    ),
    "hw_quantize": ("1.2 Quantization to W4A16", "1.2 W4A16 量化"),
    "hw_quantize_text": (
        "LMDeploy’s AWQ packs the linear layers into {bits} bits, in groups of {group} weights. It took {seconds} s.",
        "使用 LMDeploy 的 AWQ 将线性层量化为 {bits} 位，分组大小为 {group}，用时 {seconds} 秒。",
    ),
    "hw_du": ("The folders, as `du -sh` rounds them:", "文件夹大小（按 `du -sh` 的方式取整）："),
    "hw_wire": ("The calls, as they came over the wire:", "模型返回的调用（原始内容）："),
    "hw_serve": ("1.3 Serving W4A16 with an int4 KV cache", "1.3 以 W4A16 和 int4 KV 缓存启动服务"),
    "hw_serve_text": (
        "`--quant-policy {policy}` quantizes the KV cache to {bits} bits while it is written, and "
        "`--cache-max-entry-count {ratio}` gives it that share of the memory that is free after the weights.",
        "`--quant-policy {policy}` 在写入时将 KV 缓存在线量化为 {bits} 位；`--cache-max-entry-count {ratio}` "
        "表示 KV 缓存占用加载权重后剩余内存的比例。",
    ),
    "hw_serve_plain": (
        "The KV cache has {bits} bits, and `--cache-max-entry-count {ratio}` gives it that share of the memory that is "
        "free after the weights.",
        "KV 缓存为 {bits} 位；`--cache-max-entry-count {ratio}` 表示 KV 缓存占用加载权重后剩余内存的比例。",
    ),
    "hw_chat": ("1.4 A conversation", "1.4 一次对话"),
    "hw_memory": ("1.5 Memory before and after", "1.5 量化前后的内存对比"),
    "hw_task2": ("Task 2: function calls", "任务二：函数调用（function call）"),
    "hw_functions": (
        "The model may call two functions, which are described to it as tools; it chooses itself (`tool_choice` is "
        "`{choice}`). Asked: {question}",
        "提供给模型的两个函数如下，由模型自行决定是否调用（`tool_choice` 为 `{choice}`）。问题：{question}",
    ),
    "hw_same_server": (
        "The server is that of 1.3: {command}",
        "使用 1.3 中启动的服务：{command}",
    ),
    "hw_returned": (
        "The results went back to the model, whose last words are the answer above.",
        "函数结果已回传给模型，上面最后一行是模型的回答。",
    ),
    "hw_not_returned": (
        "The results did not go back to the model.",
        "结果没有回传给模型。",
    ),
    "hw_sum_up": ("What the figures show", "结果分析"),
    "hw_sum_size": (
        "The weights went from {before} to {after} ({change}). Only the decoder’s linear layers have 4 bits; the "
        "embeddings, the output layer and the norms keep 16, so it is not a quarter.",
        "权重由 {before} 变为 {after}（{change}）。只有解码层的线性层为 4 位；词嵌入、输出层和归一化层仍为 16 位，"
        "因此不是原来的四分之一。",
    ),
    "hw_sum_memory": (
        "The memory in use went from {before} to {after} MiB ({change}). The weights account for {weights} MiB of "
        "that; most of the rest comes from the KV cache’s share, {ratio_before} → {ratio_after}.",
        "占用内存由 {before} MiB 变为 {after} MiB（{change}）。其中权重占 {weights} MiB；其余差异主要来自 KV 缓存"
        "占比 {ratio_before} → {ratio_after}。",
    ),
    "hw_sum_kv": (
        "An int4 KV cache needs no calibration, and by itself it does not lower the memory in use: the pool is sized "
        "beforehand. In the same pool it holds {times}x the tokens ({bytes16} → {bytes4} bytes for each).",
        "int4 KV 缓存为在线量化，不需要校准；它本身不会降低占用的内存，因为缓存池的大小是预先分配的，"
        "但同样大小的缓存池可容纳 {times} 倍的 token（每个 token 由 {bytes16} 字节降为 {bytes4} 字节）。",
    ),
    "hw_sum_weights_only": (
        "W4A16 quantizes weights only; activations stay in 16 bits, and the weights are unpacked while they are used.",
        "W4A16 只量化权重，激活值仍为 16 位，计算时再将权重反量化。",
    ),
    "hw_sum_quality": (
        "The perplexity on held-out text went from {before} to {after} ({change}).",
        "留出文本上的困惑度由 {before} 变为 {after}（{change}）。",
    ),
    "hw_sum_quality_kv": (
        "With the int4 KV cache too it is {kv}.",
        "再使用 int4 KV 缓存时为 {kv}。",
    ),
    "hw_checks": ("lab3’s checks", "lab3 的检查结果"),
    "hw_check_head": ("check", "检查项"),
    "hw_why": ("why", "说明"),
}
