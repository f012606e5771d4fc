"""Session fixtures: the expensive things of the lab, made once for a run and shared by pytest-xdist's workers."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab3.garbage import collect_rarely
from lab3.threads import wait_patiently

if TYPE_CHECKING:
    from lab3.quantize import QuantizeResult

pytest_plugins = ["lab3.pytest_plugin", "tests.where"]

wait_patiently()  # the workers share the cores
collect_rarely()
# A card of this size is enough for the embedded model, and several servers fit into one machine beside each other.
os.environ.setdefault("LAB3_CPU_MEMORY", "3GiB")


# In this order the workers take them (`--no-loadscope-reorder`): quantization, which others wait for, begins at once
# beside what mostly waits; then what computes beside what asks servers; and what waits for processes and clocks in one
# of them beside the many small ones, so that not all of them wait.
_GROUPS = ("servers", "sandbox", "kernels", "engine", "web", "suite", "docs", "waiting")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under pytest-xdist the large groups come first, and among workers in the order that keeps both busy."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=_turn)


def pytest_collection_finish(session: pytest.Session) -> None:
    """What was imported for the tests is no garbage, and pytest looks for some five times at its end."""
    gc.freeze()
    if "PYTEST_XDIST_WORKER" in os.environ and any(not _is_of_the_lab(item) for item in session.items):
        _share_the_cores(workers=int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))


def _is_of_the_lab(item: pytest.Item) -> bool:
    """Whether it is one of the acceptance suite's tests, which share one server."""
    return item.nodeid.startswith(("tests/lab/", "tests/gpu/"))


def _share_the_cores(workers: int) -> None:
    """pytest-xdist's workers keep all cores busy by themselves: where what each of them starts takes all cores, threads
    of one server wait for threads of another.

    The engine within a worker, whose torch is imported by now, keeps all of them, and so do the servers of the whole
    lab (tests/integration/test_commands.py).
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))


def _turn(item: pytest.Item) -> int:
    group = next((str(name) for marker in item.iter_markers("xdist_group") for name in marker.args), "")
    return _GROUPS.index(group) if group in _GROUPS else len(_GROUPS)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for the whole run: under xdist each worker has its own base below a common one."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base


@pytest.fixture(scope="session")
def embedded_model(embedded_base: Path) -> Path:
    """SmolLM2-135M-Instruct as a plain fp16 folder. Where its base lies already, it is made of that."""
    from lab3.models import resolve

    return resolve("embedded")


@pytest.fixture(scope="session")
def embedded_base() -> Path:
    """SmolLM2-135M-Instruct as it was before lab3 taught it to call functions."""
    from lab3.embedded import embedded_folder
    from lab3.progress import silent

    return embedded_folder(silent, tool_caller=False)


@pytest.fixture(scope="session")
def quantization(embedded_model: Path, quantized_model: Callable[..., QuantizeResult]) -> QuantizeResult:
    """The embedded model quantized by lab3 with its defaults, once for the run."""
    return quantized_model(embedded_model)


@pytest.fixture(scope="session")
def w4a16(quantization: QuantizeResult) -> Path:
    """The folder of `quantization`."""
    return quantization.out


@pytest.fixture(scope="session")
def internlm2_texts() -> list[str]:
    """Over ten thousand texts of many kinds."""
    from tests import internlm2_folder

    return internlm2_folder.texts()


@pytest.fixture(scope="session")
def internlm2_tokenizer(internlm2_texts: list[str]) -> bytes:
    """A SentencePiece model of InternLM2's kind and size."""
    from tests import internlm2_folder

    return internlm2_folder.sentencepiece_model(internlm2_texts[::3])
