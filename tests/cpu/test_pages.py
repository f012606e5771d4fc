"""The weights' move into huge pages."""

from __future__ import annotations

import mmap
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from lab3.cpu.pages import move_to_huge_pages

_SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")


class Tied(nn.Module):
    """An embedding of 4 MiB, an output layer that shares it, one more layer, and an odd buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4096, 512, dtype=torch.float16)
        self.output = nn.Linear(512, 4096, bias=False, dtype=torch.float16)
        self.output.weight.data = self.embedding.weight.data
        self.layer = nn.Linear(512, 1024)
        self.codes = nn.Parameter(torch.arange(7, dtype=torch.uint8), requires_grad=False)
        self.register_buffer("angles", torch.rand(3, 5)[:, :3])  # not in one piece


def addresses(model: nn.Module) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in model.state_dict(keep_vars=True).items()}


def test_weights_keep_their_values_and_what_they_share():
    model = Tied()
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = addresses(model)
    move_to_huge_pages(model)
    after = addresses(model)
    assert all(torch.equal(tensor, values[name]) for name, tensor in model.state_dict().items())
    assert {name for name in before if after[name] == before[name]} == {"angles"}
    assert after["embedding.weight"] == after["output.weight"]
    assert all(address % 64 == 0 for name, address in after.items() if name != "angles")
    starts = sorted(
        (after[name], tensor.nbytes) for name, tensor in values.items() if name not in ("angles", "output.weight")
    )
    assert all(start + size <= following for (start, size), (following, _) in pairwise(starts))
    assert model.layer(torch.ones(1, 512)).isfinite().all()


@pytest.mark.skipif(
    not _SWITCH.is_file() or "[never]" in _SWITCH.read_text(), reason="this kernel gives nobody huge pages"
)
def test_the_kernel_maps_them_with_huge_pages():
    model = Tied()
    move_to_huge_pages(model)
    address = model.embedding.weight.data_ptr()
    areas = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)
    (area,) = [each for each in areas if each and _holds(each, address)]
    assert int(re.search(r"AnonHugePages: +([0-9]+) kB", area)[1]) >= 2048  # type: ignore[index]


def _holds(area: str, address: int) -> bool:
    start, end = (int(each, 16) for each in area.split(" ", 1)[0].split("-"))
    return start <= address < end


def test_where_there_are_none_the_weights_stay_where_they_are(monkeypatch: pytest.MonkeyPatch):
    model = Tied()
    before = addresses(model)
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE")
    move_to_huge_pages(model)
    assert addresses(model) == before


def test_a_kernel_that_refuses_is_no_error(monkeypatch: pytest.MonkeyPatch):
    model = Tied()
    before = addresses(model)
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 9999)  # EINVAL, as from a kernel without them
    move_to_huge_pages(model)
    assert addresses(model) == before


def test_a_model_without_weights_stays_as_it_is():
    move_to_huge_pages(nn.Identity())
