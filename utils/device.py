"""The device of a run: its precision, its random numbers, its memory, and its name in the logs."""

import contextlib
import ctypes
import logging
import platform
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor, nn


def choose_device(cpu: bool = False) -> torch.device:
    """The GPU, if there is one and ``cpu`` is false, else the CPU."""
    if not cpu and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if not cpu and torch.backends.mps.is_available():
        return torch.device("mps")
    keep_freed_memory()
    return torch.device("cpu")


def choose_precision(wanted: str, saved: str | None, device: torch.device) -> str:
    """The precision to train in: the recipe's, else that of a resumed run, else the fast one.

    A run that resumes keeps its precision, so that all its epochs are comparable. If this device
    cannot compute in it, a line says so, and the run goes on in the fast one.
    """
    if wanted != "auto":
        return wanted
    fast = fast_precision(device)
    if saved is None:
        return fast
    if not can_compute(device, saved):
        print(
            f"The run was started in {saved}, which this device cannot compute: "
            f"it resumes in {fast}.",
            flush=True,
        )
        return fast
    return saved


def can_compute(device: torch.device, precision: str) -> bool:
    """Whether ``device`` computes in ``precision``; every CPU can, if slowly, use bfloat16."""
    if precision == "float32":
        return True
    if device.type == "cuda":
        return precision == "float16" or computes_bfloat16()
    return device.type == "cpu" and precision == "bfloat16"


def computes_bfloat16() -> bool:
    """Whether the CUDA GPU has units for bfloat16; a T4 only emulates it."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


def fast_precision(device: torch.device) -> str:
    """The precision that trains fast on ``device``.

    It is a rule, not a measurement, so that the same command computes the same every time.
    GPU: bfloat16 if it computes in it, else float16. CPU: bfloat16 with AMX; with AVX512-BF16 only
    on AMD, because Intel's CPUs without AMX take longer in bfloat16 than in float32. All other CPUs
    would emulate it: float32.
    """
    if device.type == "cuda":
        return "bfloat16" if computes_bfloat16() else "float16"
    if device.type == "cpu":
        # These functions are private, and an older PyTorch may lack them.
        amx = getattr(torch.cpu, "_is_amx_tile_supported", bool)()
        avx512 = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
        if amx or (avx512 and cpu_field("vendor_id") == "AuthenticAMD"):
            return "bfloat16"
    return "float32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Inside, networks compute in ``precision``; their weights stay in float32."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, getattr(torch, precision))


def memory_format(device: torch.device) -> torch.memory_format:
    """Channels-last, which is faster, but not on MPS.

    BatchNorm's backward pass is wrong there (https://github.com/pytorch/pytorch/issues/134580).
    """
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of PyTorch's random numbers on the CPU and on ``device``."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Restore what ``random_state`` returned, as far as this device has it."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    if device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])


@contextlib.contextmanager
def forked_random_state(device: torch.device) -> Iterator[None]:
    """Inside, random numbers may be drawn; afterwards their state is as before."""
    state = random_state(device)
    try:
        yield
    finally:
        set_random_state(state, device)


def hardware_of(device: torch.device, precision: str) -> str:
    """Hardware and precision, for logs and pages: "AMD EPYC, 2 threads, bfloat16"."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {precision}"
    if device.type == "mps":
        return f"{platform.machine()} GPU (mps), {precision}"
    threads = torch.get_num_threads()
    unit = "thread" if threads == 1 else "threads"
    return f"{cpu_field('model name') or platform.machine()}, {threads} {unit}, {precision}"


def cpu_field(name: str) -> str:
    """A field of the first processor in /proc/cpuinfo; "" if the system has none."""
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith(name):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return ""


def keep_freed_memory() -> None:
    """Make malloc keep freed memory for the next step.

    By default, glibc returns large blocks to the system, which fills them with zeros for the next
    step.
    """
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_max = -1, -4  # mallopt's names for them, from malloc.h
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_max, 0)  # allocate all blocks from the heap …
        mallopt(trim_threshold, -1)  # … and never shrink it


def compile_where_it_pays(model: nn.Module, device: torch.device, steps: int) -> None:
    """Compile ``model`` if ``steps`` steps save more than the half minute that it takes.

    PyTorch compiles later, when it sees the first images. On a GPU no number of steps pays: there,
    a training step is recorded as a CUDA graph.
    """
    if device.type != "cpu" or steps < 1000:
        return
    # The first would warn on machines without CUDA, the second of a backward pass that fails.
    for name in ("torch.utils.cpp_extension", "torch._functorch._aot_autograd"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        model.compile()
    except RuntimeError:  # this PyTorch cannot compile under this Python
        stop_compiling()


def is_of_the_compiler(error: Exception) -> bool:
    """Whether an error comes from torch.compile, which needs a C++ compiler, for example."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    compiler = [Path(torch.__file__).parent / name for name in ("_dynamo", "_inductor")]
    return any(Path(file).is_relative_to(folder) for file in files for folder in compiler)


def stop_compiling() -> None:
    """From now on, call compiled networks as they are; print a line."""
    print(
        "torch.compile does not work here: training takes longer but is otherwise the same.",
        flush=True,
    )
    torch.compiler.set_stance("force_eager")
