"""Every change made to LMDeploy and to what it imports, each with its reason; made by a call, undone by another.

LMDeploy's integrations of other devices "patch the canonical cuda device path before reaching this layer" (its own
words, engine/cache_engine/engine.py), and so does this one, but by name and in LMDeploy's modules alone (`PATCHES`):
torch stays as it is. A server's own process does without some imports of torch and transformers, too, and reads its
tokenizer once (`IMPORTS`).
Everything is looked up and compared with what 0.18 has before anything is changed.
"""

from __future__ import annotations

import importlib
import inspect
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lab3.cpu.imports import AutoProcessor, as_it_is, never, of_folders, read_once
from lab3.errors import InfraError

_MAX_BATCH_SIZE = 32  # as LMDeploy has one for each card: 128 for an unknown one


@dataclass(frozen=True)
class Patch:
    """One attribute that is replaced.

    `where` is `module:attribute.path`, `why` the reason, `make` gives the replacement from the original.
    `parameters`: the names that the original must take, in order, for the replacement to fit (None: not a function).
    """

    where: str
    why: str
    make: Callable[[Any], Any]
    parameters: tuple[str, ...] | None = None


def install() -> None:
    """Make the CPU LMDeploy's device in this process. A second call does nothing.

    Raises:
        InfraError: another LMDeploy than 0.18, or one whose internals are not as 0.18 has them. Nothing was changed.
    """
    if _undo:
        return
    _check_version()
    _disable_dynamo()
    found = [(patch, *_find(patch)) for patch in PATCHES]
    moved = [problem for *_, problem in found if problem]
    if moved:
        uninstall()
        raise InfraError(
            "LMDeploy's internals are not those that lab3.cpu was written for:\n    " + "\n    ".join(moved),
            why="LMDeploy changed within 0.18, or another package patches it too.",
            todo="pip install 'lmdeploy==0.18.0', or adapt lab3/cpu/patches.py.",
        )
    for patch, owner, name, original, _ in found:
        _undo.append((owner, name, original))
        setattr(owner, name, patch.make(original))


def import_less() -> list[str]:
    """Have LMDeploy and transformers not import what text on a CPU never uses. For a process of its own, and first.

    A second call does nothing. Returns what has moved in this torch or transformers and so stayed as it was: the start
    is slower by it and nothing else.
    """
    if _undo_imports:
        return []
    _disable_dynamo()
    problems = []
    for patch in IMPORTS:
        owner, name, original, problem = _find(patch)
        if problem:
            problems.append(problem)
            continue
        _undo_imports.append((owner, name, original))
        setattr(owner, name, patch.make(original))
    return problems


def uninstall() -> None:
    """Take back what `install` and `import_less` changed. Engines that were built meanwhile keep the CPU."""
    for changes in (_undo, _undo_imports):
        while changes:
            owner, name, original = changes.pop()
            if original is _LAZY:
                delattr(owner, name)
            else:
                setattr(owner, name, original)
    while _disabled:
        os.environ.pop(_disabled.pop(), None)


def installed() -> bool:
    """Whether the CPU is LMDeploy's device in this process."""
    return bool(_undo)


def original(owner: Any, name: str) -> Any:
    """What `owner` had as `name` before `install`. Raises LookupError: that is no patch."""
    found = [before for each, attribute, before in _undo if (each, attribute) == (owner, name)]
    if not found:
        raise LookupError(f"{name} of {owner} is not replaced.")
    return found[0]


_LAZY = object()  # in place of an original that its module imports when somebody asks for it

_undo: list[tuple[Any, str, Any]] = []
_undo_imports: list[tuple[Any, str, Any]] = []
_disabled: list[str] = []


def _disable_dynamo() -> None:
    """torch.compile of two rotary lines costs a minute of C++ compiler (which may not be there) and gains nothing."""
    if "TORCHDYNAMO_DISABLE" not in os.environ:
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
        _disabled.append("TORCHDYNAMO_DISABLE")


def _check_version() -> None:
    import lmdeploy
    from packaging.specifiers import SpecifierSet

    if lmdeploy.__version__ not in SpecifierSet(">=0.18,<0.19"):
        raise InfraError(
            f"lab3.cpu works with LMDeploy 0.18, and {lmdeploy.__version__} is installed.",
            why="It replaces a few of LMDeploy's internals by name.",
            todo="pip install 'lmdeploy>=0.18,<0.19'.",
        )


def _find(patch: Patch) -> tuple[Any, str, Any, str]:
    """(owner, name, original, problem): the attribute that `patch` replaces, or what is wrong with it."""
    module_name, _, path = patch.where.partition(":")
    *outer, name = path.split(".")
    try:
        owner = importlib.import_module(module_name)
        for step in outer:
            owner = getattr(owner, step)
        # transformers tells what it has in dir(), and imports it when it is asked for.
        lazy = name not in vars(owner) and hasattr(type(owner), "__getattr__") and name in dir(owner)
        original: Any = _LAZY if lazy else inspect.getattr_static(owner, name)
    except (ImportError, AttributeError) as error:
        return None, name, None, f"{patch.where}: {error}"
    function = getattr(original, "__func__", original)
    if patch.parameters is not None and tuple(inspect.signature(function).parameters) != patch.parameters:
        return owner, name, original, f"{patch.where}: takes {', '.join(inspect.signature(function).parameters)}"
    return owner, name, original, ""


# --- replacements ------------------------------------------------------------------------------------------------


def _torch_on_cpu(torch: Any) -> Any:
    from lab3.cpu.device import TorchOnCpu

    return TorchOnCpu(torch)


def _cpu_backend(_: Any) -> Any:
    from lab3.cpu.backend import CpuOpsBackend

    return lambda: CpuOpsBackend


def _engine_config_on_cpu(original: Any) -> Any:
    def __post_init__(self: Any) -> None:
        from lab3.cpu.limits import check_engine_config

        # The original checks the values and knows neither this device nor fp32: show it the card in whose place we are.
        dtype = self.dtype
        self.device_type, self.dtype = "cuda", "auto" if dtype == "float32" else dtype
        try:
            original(self)
        finally:
            self.device_type, self.dtype = "cpu", dtype
        check_engine_config(self)

    return __post_init__


def _dtype_with_fp32(original: Any) -> Any:
    def _update_torch_dtype(config: Any, dtype: str, device_type: str = "auto") -> Any:
        import torch

        hf_config = config.hf_config
        source = getattr(hf_config, "dtype", None) or getattr(hf_config, "torch_dtype", None)
        is_fp32 = str(source).removeprefix("torch.") == "float32"
        config = original(config, "auto" if dtype == "float32" else dtype, device_type=device_type)
        quantized = getattr(hf_config, "quantization_config", None)
        if not quantized and (dtype == "float32" or (dtype == "auto" and is_fp32)):
            config.dtype = torch.float32
        return config

    return _update_torch_dtype


def _allocate_on_cpu(original: Any) -> Any:
    import torch

    def allocate(self: Any, num_logical_blocks: int, device: Any) -> Any:
        if device != "cuda":
            return original(self, num_logical_blocks, device)
        allocation = original(self, num_logical_blocks, "cpu")
        for pool in allocation.pools:  # a GPU's memory is taken at once; a CPU's only when a page is written
            pool.tensor.view(-1).view(torch.uint8)[:: mmap.PAGESIZE] = 0
        return allocation

    return allocate


def _prompts_only(original: Any) -> Any:
    def allocate(self: Any, seq: Any) -> None:
        if seq.num_new_tokens == 0:
            original(self, seq)

    return allocate


def _state_caches_on_cpu(original: Any) -> Any:
    def _allocate_state_caches(tensor_specs: Any, num_caches: int, device: Any) -> Any:
        return original(tensor_specs, num_caches, "cpu" if device == "cuda" else device)

    return _allocate_state_caches


def _agent_on_cpu(original: Any) -> Any:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.device = "cpu"

    return __init__


def _memory_of_cpu(_: Any) -> Any:
    from lab3.cpu.device import memory_info

    return lambda device_id=None: memory_info()


def _inputs_on_cpu(_: Any) -> Any:
    def _try_to_cuda(val: Any, non_blocking: bool = False) -> Any:
        return val.to_device("cpu") if hasattr(val, "to_device") else val

    return _try_to_cuda


def _torch_checker_on_cpu(original: Any) -> Any:
    def __init__(self: Any, device: str = "cpu", logger: Any = None) -> None:
        original(self, device, logger)

    return __init__


def _max_batch_size(_: Any) -> Any:
    return lambda device_type: _MAX_BATCH_SIZE


def _bf16_supported(_: Any) -> Any:
    return lambda device_type="cpu": True


def _task_without_vision(original: Any) -> Any:
    def get_task(backend: str, model_path: str, *args: Any, **kwargs: Any) -> Any:
        from lab3.cpu.limits import refuse_vision

        task, pipeline = original(backend, model_path, *args, **kwargs)
        if task == "vlm":
            refuse_vision(model_path)
        return task, pipeline

    return get_task


def _drafts_refused(_: Any) -> Any:
    def __post_init__(self: Any) -> None:
        from lab3.cpu.limits import refuse_speculation

        refuse_speculation()

    return __post_init__


def _turbomind_refused(_: Any) -> Any:
    def __post_init__(self: Any) -> None:
        from lab3.cpu.limits import refuse_turbomind

        refuse_turbomind()

    return __post_init__


def _child_on_cpu(_: Any) -> Any:
    from lab3.cpu.worker import engine_process

    return staticmethod(engine_process)


def _forked_where_it_is_safe(original: Any) -> Any:
    from lab3.cpu.worker import Multiprocessing

    return Multiprocessing(original)


def _woken_by_messages(original: Any) -> Any:
    from lab3.cpu.worker import Zmq

    return Zmq(original)


def _device_option(_: Any) -> Any:
    def device(parser: Any, default: str = "cpu", choices: Any = None) -> Any:
        return parser.add_argument("--device", default="cpu", choices=["cpu"], help="The device type of running")

    return staticmethod(device)


def _backend_option(original: Any) -> Any:
    def backend(parser: Any) -> Any:
        action = original.__func__(parser)
        action.default, action.type = "pytorch", _backend
        return action

    return staticmethod(backend)


def _backend(name: str) -> str:
    if name == "turbomind":
        from lab3.cpu.limits import refuse_turbomind

        refuse_turbomind()
    return name


def _dtype_option(original: Any) -> Any:
    def dtype(parser: Any, default: str = "auto") -> Any:
        action = original.__func__(parser, default)
        action.choices = [*action.choices, "float32"]
        return action

    return staticmethod(dtype)


_PT = "lmdeploy.pytorch"
_AGENT = f"{_PT}.engine.model_agent"
_STREAMS = "asks torch.cuda for streams and events; on a CPU an operator has run when it returns"

PATCHES: tuple[Patch, ...] = (
    # operators
    Patch(f"{_PT}.backends.selector:_get_backend", "no backend is registered for device type cpu", _cpu_backend, ()),
    # the device
    Patch(f"{_AGENT}.agent:torch", _STREAMS, _torch_on_cpu),
    Patch(f"{_AGENT}.inputs_maker:torch", _STREAMS, _torch_on_cpu),
    Patch(f"{_PT}.engine.logits_process:torch", _STREAMS, _torch_on_cpu),
    Patch(f"{_PT}.engine.cache_engine.engine:torch", _STREAMS, _torch_on_cpu),
    Patch(f"{_AGENT}.agent:get_gpu_memory", "reads the card's free and total memory", _memory_of_cpu, ("device_id",)),
    Patch(f"{_AGENT}.agent:BaseModelAgent.__init__", "the device of weights is the literal 'cuda'", _agent_on_cpu),
    Patch(f"{_AGENT}.agent:_try_to_cuda", "moves a step's inputs to 'cuda'", _inputs_on_cpu, ("val", "non_blocking")),
    Patch(
        f"{_PT}.engine.cache_engine.plan:BlockCachePlan.allocate",
        "the KV pool's device is the literal 'cuda'",
        _allocate_on_cpu,
        ("self", "num_logical_blocks", "device"),
    ),
    Patch(
        f"{_PT}.engine.cache_engine.state:_allocate_state_caches",
        "the state caches' device is the literal 'cuda'",
        _state_caches_on_cpu,
        ("tensor_specs", "num_caches", "device"),
    ),
    Patch(
        f"{_PT}.paging.block_trie.trie:BlockTrie.allocate",
        "prefix caching keeps what decoding steps wrote, too, which has other last bits than a prompt with that answer",
        _prompts_only,
        ("self", "seq"),
    ),
    Patch(
        f"{_PT}.engine.mp_engine.zmq_engine:ZMQMPEngine._mp_proc",
        "api_server spawns its engine: the child must install the device, too",
        _child_on_cpu,
        ("shared_dict", "condition", "model_path", "engine_config", "log_level", "speculative_config", "kwargs"),
    ),
    Patch(
        f"{_PT}.engine.mp_engine.zmq_engine:mp",
        "the spawned engine imports all of LMDeploy anew, for CUDA's sake",
        _forked_where_it_is_safe,
    ),
    Patch(f"{_PT}.engine.mp_engine.zmq_rpc:zmq", "an idle engine polls a hundred times a second", _woken_by_messages),
    Patch(f"{_PT}.envs:skip_warmup", "warm-up captures CUDA graphs", lambda _: True),
    # the configuration
    Patch(
        "lmdeploy.messages:PytorchEngineConfig.__post_init__",
        "knows no device cpu and no fp32; refuses what the CPU cannot do",
        _engine_config_on_cpu,
        ("self",),
    ),
    Patch("lmdeploy.messages:TurbomindEngineConfig.__post_init__", "CUDA only", _turbomind_refused, ("self",)),
    Patch("lmdeploy.messages:SpeculativeConfig.__post_init__", "drafts need CUDA kernels", _drafts_refused, ("self",)),
    Patch(
        f"{_PT}.config:_update_torch_dtype",
        "turns fp32 checkpoints into fp16; a CPU can run them as they are",
        _dtype_with_fp32,
        ("config", "dtype", "device_type"),
    ),
    Patch(f"{_PT}.config:is_bf16_supported", "asks the card's capability", _bf16_supported, ("device_type",)),
    Patch("lmdeploy.utils:is_bf16_supported", "asks the card's capability", _bf16_supported, ("device_type",)),
    Patch(f"{_PT}.engine.config_builder:get_max_batch_size", "knows cards by name", _max_batch_size, ("device_type",)),
    Patch("lmdeploy.cli.serve:get_max_batch_size", "knows cards by name", _max_batch_size, ("device_type",)),
    # the environment check: it runs, with the CPU in the card's place
    Patch(
        f"{_PT}.check_env.torch:TorchChecker.__init__",
        "adds two tensors on device 'cuda' to see that torch works",
        _torch_checker_on_cpu,
        ("self", "device", "logger"),
    ),
    # what is refused
    Patch("lmdeploy.serve.openai.api_server:get_task", "vision encoders need CUDA", _task_without_vision),
    Patch("lmdeploy.pipeline:get_task", "vision encoders need CUDA", _task_without_vision),
    # the command line
    Patch("lmdeploy.cli.utils:ArgumentHelper.device", "--device has no choice cpu", _device_option),
    Patch(
        "lmdeploy.cli.utils:ArgumentHelper.backend",
        "TurboMind is the default, and where it cannot be imported LMDeploy takes the other engine without a word",
        _backend_option,
    ),
    Patch("lmdeploy.cli.utils:ArgumentHelper.dtype", "--dtype has no choice float32", _dtype_option),
)

_TYPES = "the type of a video imports torchvision, which imports torch._dynamo and sympy"
_CLUSTERS = "asked for sharded tensors, which are imported to see what a model's weights are"

# Of a server's process alone, before anything else (`import_less`): what is imported for pictures, compilers, clusters.
IMPORTS: tuple[Patch, ...] = (
    Patch(
        "torch.testing._comparison:_HAS_DTENSOR",
        "LMDeploy's check compares two tensors, which imports sharded tensors and sympy",
        lambda _: False,
    ),
    Patch("torch:compile", "decorating with it imports torch._dynamo even where that is disabled", as_it_is),
    Patch(
        "transformers.utils.import_utils:create_import_structure_from_path",
        "the sources of all models are read twice to know what is in them",
        of_folders,
        ("module_path",),
    ),
    Patch("transformers.utils.import_utils:is_torchvision_available", _TYPES, never, ()),
    Patch("transformers.utils:is_torchvision_available", _TYPES, never, ()),
    Patch("transformers.utils.import_utils:is_torch_distributed_available", _CLUSTERS, never, ()),
    Patch("transformers.utils:is_torch_distributed_available", _CLUSTERS, never, ()),
    Patch("transformers:AutoProcessor", "LMDeploy looks at it, which imports all processors", lambda _: AutoProcessor),
    Patch(
        "transformers.models.auto.tokenization_auto:AutoTokenizer.from_pretrained",
        "the chat template, the API and the engine read the same tokenizer, four times in all",
        read_once,
    ),
)
