"""Why a server died, in one sentence, read from its log: a table of known causes and its look-up."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Fault = Literal["machine", "model", "usage", "unknown"]


@dataclass(frozen=True)
class Diagnosis:
    """The likely cause of a server's death.

    `fault` says whose it is: the machine's (memory, driver, disk, packages), the model folder's, the flags' or unknown.
    `line` is the log line it was recognised by, "" when it was recognised by the exit code alone.
    """

    kind: str
    fault: Fault
    why: str
    todo: str
    line: str = ""


def diagnose(log_text: str, *, returncode: int | None) -> Diagnosis:
    """The first cause in the table that the log shows, else what the exit code says (None: it still ran, or hung).

    A negative `returncode` is the signal that ended the process, as `subprocess` gives it. The first matching *row*
    wins, not the first or last line: LMDeploy's last lines often only say that another process of it is gone.
    """
    for cause in _CAUSES:
        matches = list(re.finditer(cause.pattern, log_text, re.IGNORECASE | re.MULTILINE))
        if matches:  # the last one: a traceback shows the raising source line before the error itself
            line = _line_at(log_text, matches[-1].start())
            return Diagnosis(cause.kind, cause.fault, cause.why, cause.todo, line=line)
    return _by_returncode(returncode)


@dataclass(frozen=True)
class _Cause:
    kind: str
    fault: Fault
    pattern: str
    why: str
    todo: str


# Specific before general. The texts are those of LMDeploy 0.18, transformers 5, torch 2.12, uvicorn and the kernel.
_CAUSES = (
    _Cause(
        "disk_full",
        "machine",
        r"No space left on device|Disk quota exceeded|database or disk is full",
        "the disk is full",
        "free some space (`df -h`), or point HF_HOME, TMPDIR and LAB3_CACHE at a larger disk",
    ),
    _Cause(
        "no_gpu",
        "machine",
        r"Found no NVIDIA driver|No CUDA GPUs are available|no CUDA-capable device|<CUDA> check failed",
        "LMDeploy was started for a GPU and finds none",
        "look at `nvidia-smi` and CUDA_VISIBLE_DEVICES, or run on the CPU with the engine 'cpu'",
    ),
    _Cause(
        "driver_too_old",
        "machine",
        r"NVIDIA driver on your system is too old|CUDA driver version is insufficient"
        r"|the provided PTX was compiled with an unsupported toolchain|Error 803|forward compatibility was attempted",
        "the NVIDIA driver is older than the CUDA that torch was built with",
        "update the driver, or install a torch built for an older CUDA; `lab3 doctor` shows both versions",
    ),
    _Cause(
        "compute_capability",
        "machine",
        r"no kernel image is available|is not compatible with the current PyTorch installation|requires sm>="
        r"|no executable data type for this device|no GEMM kernel accepts|No kernel found for entry"
        r"|cuda capability .* (?:unsupported|not supported)",
        "this GPU's compute capability is not supported by the chosen engine",
        "try the engine 'pytorch', or a GPU of compute capability 7.0 or newer",
    ),
    _Cause(
        "gpu_memory",
        "machine",
        r"CUDA out of memory|torch\.OutOfMemoryError|CUDA error: out of memory|cudaErrorMemoryAllocation"
        r"|CUDA runtime error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|\[TM\].*out of memory",
        "the GPU ran out of memory",
        "see who holds it (`lab3 doctor`, `nvidia-smi`), stop them, or lower the cache ratio or the batch size",
    ),
    _Cause(
        "kv_cache_memory",
        "machine",
        r"No enough gpu memory for|No enough free memory blocks|cache out of memory",
        "no memory is left for the KV cache after the weights",
        "see who holds the memory (`lab3 doctor`), raise the cache ratio or lower the session length;"
        " on the CPU raise LAB3_CPU_MEMORY",
    ),
    _Cause(
        "address_in_use",
        "machine",
        r"error while attempting to bind on address|Address already in use",
        "another process took the port while the model was loading",
        "choose another port, or none: lab3 then takes a free one",
    ),
    _Cause(
        "awq_group_size",
        "model",
        r"Unsupported group_size=",
        "TurboMind serves AWQ weights with group size 128 only",
        "quantize with group size 128, or use the engine 'pytorch'",
    ),
    _Cause(
        "format_mismatch",
        "model",
        r"mismatched quant (?:method|group size)|unknown model_format|no weight format accepts tensors",
        "the weights, quantization_config in config.json and --model-format do not agree",
        "leave the flag out (lab3 reads the format from config.json), and check that config.json is the weights' own",
    ),
    _Cause(
        "missing_tokenizer",
        "model",
        r"Couldn't instantiate the backend tokenizer|Can't load tokenizer for|Unrecognized processing class"
        r"|tokenizer\S* does not exist|Not found: .*tokenizer\.model",
        "the model folder has no tokenizer that transformers can read",
        "copy tokenizer.json (or tokenizer.model) and tokenizer_config.json from the original model",
    ),
    _Cause(
        "trust_remote_code",
        "model",
        r"trust_remote_code=True|contains custom code which must be executed|requires you to execute the .* file",
        "the folder brings its own Python code, and LMDeploy 0.18 does not run it unless told to",
        "use the Llama layout that lab3 writes, or, if you trust the folder, pass --trust-remote-code",
    ),
    _Cause(
        "missing_weights",
        "model",
        r"Failed to find valid checkpoint|failed to locate weight files|no checkpoint tensors found|Unknown weight type"
        r"|no file named (?:model\.safetensors|pytorch_model)"
        r"|Error while deserializing header|SafetensorError|MetadataIncompleteBuffer|InvalidHeaderDeserialization",
        "the weights are missing or cut short",
        "download or quantize again; every file in model.safetensors.index.json must be there at its full size",
    ),
    _Cause(
        "unknown_model_type",
        "model",
        r"Transformers does not recognize this architecture|Unrecognized model in|Unrecognized configuration class"
        r"|Can't load the configuration of|does not appear to have a file named config\.json",
        "config.json names a model type that this transformers does not know, or is missing",
        "check `model_type` and `architectures` in config.json; convert InternLM2 to the Llama layout with lab3",
    ),
    _Cause(
        "unsupported_model",
        "model",
        r"is not supported for architectures|Can not (?:load|find) .* module|model architecture .* not supported"
        r"|Unsupported model|not supported by (?:lmdeploy|turbomind) yet",
        "LMDeploy has no implementation of this model architecture",
        "check `architectures` in config.json; convert InternLM2 to the Llama layout with lab3",
    ),
    _Cause(
        "transformers_version",
        "machine",
        r"LMDeploy requires transformers.* but found|Load model config with transformers==|requires transformers[=<>!]"
        r"|cannot import name .* from 'transformers",
        "the installed transformers does not fit LMDeploy or the model",
        "install the versions that LMDeploy asks for (`lab3 doctor` lists them)",
    ),
    _Cause(
        "compiler",
        "machine",
        r"Failed to find C compiler|ptxas.*(?:not found|fatal)|fatal error: Python\.h|<Triton> check failed"
        r"|device kernel image is invalid",
        "Triton cannot compile its kernels here, and LMDeploy's PyTorch engine needs them",
        "install gcc and Python's headers (`apt-get install gcc python3-dev`), or use the engine 'turbomind'",
    ),
    _Cause(
        "shared_library",
        "machine",
        r"cannot open shared object file|undefined symbol|GLIBC(?:XX)?_\S+' not found",
        "a shared library is missing or of another version",
        "reinstall lmdeploy and torch together in a fresh virtual environment",
    ),
    _Cause(
        "import_error",
        "machine",
        r"^(?:\S*: )?(?:ModuleNotFoundError|ImportError): |No module named ",
        "a Python package is missing or broken",
        "reinstall in a fresh virtual environment; `lab3 doctor` compares the versions with LMDeploy's needs",
    ),
    _Cause(
        "bad_flag",
        "usage",
        r"lmdeploy.*: error: |is not in the parser list|invalid (?:quant_policy|cache_max_entry_count)"
        r"|unrecognized arguments",
        "LMDeploy does not accept one of the flags",
        "compare the flags with `lmdeploy serve api_server --help`; they change between LMDeploy releases",
    ),
    _Cause(
        "host_memory",
        "machine",
        r"DefaultCPUAllocator: can't allocate|Cannot allocate memory|^MemoryError|std::bad_alloc"
        r"|Unable to allocate .* for an array|unable to mmap",
        "the machine ran out of memory (RAM)",
        "close other programs, or use a machine with more RAM; on the CPU lower LAB3_CPU_MEMORY",
    ),
    _Cause(
        "shared_memory",
        "machine",
        r"insufficient shared memory|Bus error|shm_open.*failed|unable to open shared memory object",
        "/dev/shm is too small",
        "start the container with a larger one (docker: --shm-size=2g)",
    ),
    _Cause(
        "gpu_fault",
        "machine",
        r"CUDA-capable device\(s\) is/are busy|an illegal memory access|unspecified launch failure"
        r"|device-side assert|uncorrectable ECC|CUDA error: |CUDA runtime error: |NCCL error",
        "the GPU reported an error",
        "run once more with CUDA_LAUNCH_BLOCKING=1; if it stays, look at `dmesg` and `nvidia-smi -q`",
    ),
    _Cause(
        "offline",
        "machine",
        r"LocalEntryNotFoundError|OfflineModeIsEnabled|Max retries exceeded|Name or service not known"
        r"|Temporary failure in name resolution|Failed to resolve",
        "LMDeploy wanted something from a hub and could not reach it",
        "give a complete local folder; lab3 does not need the network to serve one",
    ),
    _Cause(
        "engine_died",
        "unknown",
        r"engine process (?:exited before|is not alive)|RPCServerDeadError",
        "LMDeploy's engine process died",
        "read the log from its first traceback on",
    ),
)


def _by_returncode(returncode: int | None) -> Diagnosis:
    if returncode is None:
        return Diagnosis(
            "hung",
            "unknown",
            "it still runs and its log shows no known error: it may only be slow",
            "raise the time-out, or look at the log's last lines",
        )
    if returncode == -9:
        return Diagnosis(
            "killed",
            "machine",
            "it was killed (SIGKILL), most likely by the kernel because the machine's or container's memory ran out",
            "look at `dmesg | grep -i oom` and `free -m`; close other programs or use a machine with more RAM",
        )
    if returncode in (-11, -7, -6, -4, -8):
        return Diagnosis(
            "crashed",
            "unknown",
            f"native code crashed (signal {-returncode})",
            "run the command again by hand with PYTHONFAULTHANDLER=1 and read where it stops",
        )
    if returncode < 0:
        return Diagnosis("stopped", "unknown", f"somebody stopped it (signal {-returncode})", "start it again")
    if returncode == 2:
        return Diagnosis(
            "bad_flag",
            "usage",
            "the server refused its command line",
            "read the log's last lines, and compare the flags with `lmdeploy serve api_server --help`",
        )
    if returncode == 0:
        return Diagnosis(
            "exited",
            "unknown",
            "it ended by itself without an error",
            "run the command by hand and look at what it prints",
        )
    return Diagnosis(
        "unknown",
        "unknown",
        "the log shows no cause that lab3 knows",
        "read the log's last lines, or run the command by hand",
    )


def _line_at(text: str, position: int) -> str:
    start = text.rfind("\n", 0, position) + 1
    end = text.find("\n", position)
    return text[start : end if end >= 0 else len(text)].strip()[:300]
