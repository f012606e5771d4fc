"""The lab from end to end, as `lab3 run` does it: the reference, step by step, in one process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lab3.evidence import Evidence
from lab3.hub import Hub
from lab3.hub_wire import member_of
from lab3.memory_log import MemoryLog
from lab3.places import make_folder
from lab3.progress import Progress, silent
from lab3.quantize import QuantizeResult, quantize
from lab3.serve_flags import Engine
from lab3.subject import Reference

# In an order that starts each server once, and each where nothing else wants the machine.
STEPS = {
    "baseline": "the unquantized model",
    "quantization": "W4A16 with LMDeploy's AWQ",
    "structure": "the quantized weights",
    "chat": "a conversation with the quantized model, int4 KV cache",
    "tools": "function calls",
    "quantized": "memory of the quantized model's server",
}


def run_lab(model: str, out: Path, *, engine: Engine | str = "auto", progress: Progress = silent) -> Evidence:
    """Do the whole lab with `model` (a name, path or hub id); the quantized folder and the logs go to `out`.

    Trouble with the machine keeps the sections that it touches from being filled, and is told there.
    Raises UsageError for a model that cannot be resolved, quantized or served, and for an `out` that cannot be written.
    """
    make_folder(out)
    memory = MemoryLog()
    hub = Hub(folder=out, make=memory.make, progress=progress)
    with member_of(hub) as member:

        def make_w4a16(folder: Path) -> QuantizeResult:
            with member.gpu():
                return quantize(folder, out / f"{folder.name}-w4a16", overwrite=True, progress=progress)

        lab = Reference(
            member,
            model,
            engine=engine,  # type: ignore[arg-type]
            quantize=make_w4a16,
            progress=progress,
            moment=memory.moment,
        )
        evidence = lab.evidence()
        for number, (section, title) in enumerate(STEPS.items(), 1):
            progress(f"[{number}/{len(STEPS)}] {title}")
            found = lab.evidence(section)
            evidence = _joined(evidence, found, section)
            if section in found.trouble:
                progress(f"stopped: {found.trouble[section].text.splitlines()[0]}")
    return replace(evidence, memory=memory.facts())


def _joined(evidence: Evidence, found: Evidence, section: str) -> Evidence:
    trouble = {**evidence.trouble, **found.trouble}
    return replace(evidence, trouble=trouble, **{section: getattr(found, section)})
