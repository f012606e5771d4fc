"""The lab's steps as a student shows them, one picture each, with figures that belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tools.report_corpus import lab
from tools.report_corpus.draft import Draft
from tools.report_corpus.effects import Effect
from tools.report_corpus.lab import Gpu, used_mib
from tools.report_corpus.verdicts import sums


@dataclass(kw_only=True)
class Steps:
    """`card` empty: memory is shown by a studio's bar, else by nvidia-smi. Ratios are of --cache-max-entry-count."""

    d: Draft
    total: int = 24566
    size: str = "1_8b"
    model: str = "/root/models/internlm2_5-1_8b-chat"
    made: str = "/root/models/internlm2_5-1_8b-chat-w4a16-4bit"
    chat_ratio: float = 0.8
    ratio: float = 0.4
    bits: int = 4
    port: int = 23333
    card: str = ""
    driver: lab.Driver = lab.DRIVER_535
    bar: dict[str, Any] = field(default_factory=dict)

    @property
    def before(self) -> int:
        return used_mib(self.total, self.size)

    @property
    def after(self) -> int:
        return used_mib(self.total, f"{self.size}-4bit", self.chat_ratio)

    @property
    def serving(self) -> int:
        return used_mib(self.total, f"{self.size}-4bit", self.ratio)

    @property
    def serve_command(self) -> str:
        return (
            f"lmdeploy serve api_server \\\n   {self.made} \\\n   --model-format awq \\\n"
            f"   --quant-policy {self.bits} \\\n"
            f"   --cache-max-entry-count {self.ratio} \\\n   --server-port {self.port}"
        )

    def memory(self, name: str, used: int, *, total: int = 0, effects: Sequence[Effect] = (), **more: Any) -> str:
        total = total or self.total
        if self.card:
            return self.d.smi(name, [Gpu(name=self.card, used=used, total=total)], self.driver, effects=effects)
        return self.d.bar(name, used, total, effects=effects, **{**self.bar, **more})

    def quantize(self, name: str, *, output: str = "", effects: Sequence[Effect] = ()) -> str:
        command = (
            f"lmdeploy lite auto_awq \\\n  {self.model} \\\n  --calib-dataset 'ptb' \\\n  --calib-samples 128 \\\n"
            f"  --calib-seqlen 2048 \\\n  --w-bits 4 \\\n  --w-group-size 128 \\\n  --work-dir {self.made}"
        )
        return self.d.terminal(
            name, [(command, output or lab.quantizing(moment=self.d.moment(name)), True)], effects=effects
        )

    def sizes(
        self, name: str, *, old: int = 0, new: int = 0, shown: Sequence[str] = (), effects: Sequence[Effect] = ()
    ) -> str:
        """`du -sh` of both folders; `shown` are the figures that it prints."""
        shown = shown or (["15G", "4.9G"] if self.size == "7b" else ["3.6G", "1.5G"])
        before, after = (path.rsplit("/", 1)[-1] for path in (self.model, self.made))
        folders = {
            f"models/{before}": old or lab.SIZES[self.size],
            f"models/{after}": new or lab.SIZES[f"{self.size}-4bit"],
        }
        return self.d.terminal(
            name, [("cd models/", ""), ("du -sh *", "")], figures=shown, folders=folders, effects=effects
        )

    def serve(self, name: str, *, command: str = "", effects: Sequence[Effect] = (), **log: Any) -> str:
        output = lab.serving(self.port, **{"pid": 500 + self.d.moment(name) % 39000, **log})
        return self.d.terminal(
            name, [(command or self.serve_command, output, True)], figures=[f"port {self.port}"], effects=effects
        )

    def tools_server(self, name: str, model: str, *, port: int = 0, options: str = "--model-format hf") -> str:
        port = port or self.port
        command = f"lmdeploy serve api_server \\\n  {model} \\\n  {options} \\\n  --server-port {port}"
        return self.d.terminal(
            name, [(command, lab.serving(port, pid=500 + self.d.moment(name) % 39000), True)], figures=[f"port {port}"]
        )

    def talk(self, name: str, question: str, answer: str, **more: Any) -> str:
        return self.d.chat(name, self.made, [(question, answer)], **more)

    def calls(self, name: str, a: float, b: float, c: float, *, model: str = "", **more: Any) -> str:
        return self.d.script(name, "python func_call.py", sums(a, b, c, model=model or self.made, **more))

    def usual(self) -> None:
        """baseline, awq, du, w4a16, serve and memory, without the conversation and the calls."""
        self.memory("baseline", self.before)
        self.quantize("awq")
        self.sizes("du")
        self.memory("w4a16", self.after)
        self.serve("serve")
        self.memory("memory", self.serving)
