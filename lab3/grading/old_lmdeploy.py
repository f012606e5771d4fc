"""What LMDeploy's commands took when the lab was written and do not take today, so that it is not called a typo.

Read in LMDeploy's wheels: lmdeploy/cli/{cli,serve,lite,utils}.py of 0.1.0, 0.2.6, 0.5.3 (the tutorial's), 0.6.4 and
0.18. `last` is the newest of these that has it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Gone:
    """A flag, value or command of an older LMDeploy; `values`: how many words may follow it."""

    last: str
    todo: str
    values: int = 1


COMMANDS = {
    ("serve", "gradio"): Gone(last="0.6.4", todo="ask the API server with a client of your own"),
    ("serve", "api_client"): Gone(last="0.6.4", todo="ask the API server with a client of your own"),
    ("serve", "triton_client"): Gone(last="0.2.6", todo="ask the API server with a client of your own"),
    ("lite", "kv_qparams"): Gone(last="0.5.3", todo="`--quant-policy 4` or `8` when the server is started"),
    ("convert",): Gone(last="0.6.4", todo="pass the model's folder to `lmdeploy serve api_server`"),
    ("list",): Gone(last="0.6.4", todo="nothing: chat templates come from the model's folder"),
}

FLAGS = {
    "api_server": {
        "--instance-num": Gone(last="0.1.0", todo="--max-batch-size"),
        "--qos-config-path": Gone(last="0.5.3", todo="nothing in its place"),
        "--meta-instruction": Gone(last="0.5.3", todo="a message of the role `system`"),
        "--cap": Gone(last="0.5.3", todo="nothing in its place"),
    },
    "auto_awq": {},
    "chat": {
        "--meta-instruction": Gone(last="0.5.3", todo="a message of the role `system`"),
        "--cap": Gone(last="0.5.3", todo="nothing in its place"),
    },
}

VALUES = {
    ("api_server", "--model-format", "llama"): Gone(last="0.6.4", todo="--model-format hf"),
    ("chat", "--model-format", "llama"): Gone(last="0.6.4", todo="--model-format hf"),
    ("auto_awq", "--calib-dataset", "ptb"): Gone(last="0.6.4", todo="--calib-dataset wikitext2"),
    # `type=bool` then, for which "False" was true; a bare flag today.
    ("auto_awq", "--search-scale", "False"): Gone(last="0.6.4", todo="leave it out"),
    ("auto_awq", "--search-scale", "True"): Gone(last="0.6.4", todo="--search-scale"),
}
