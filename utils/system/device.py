"""The device and its precision, which Hugging Face accelerate applies in the training loop."""

import contextlib
import ctypes
import json
import logging
import math
import os
import platform
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration, broadcast_object_list
from torch import nn
from torch.nn import functional as F

from utils.system.errors import TrainingError

ROOT = Path(__file__).parents[2]
AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}  # by accelerate's names; others are full precision
PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}  # PyTorch's names and accelerate's
MIN_SPEEDUP = 1.15  # a speed-up below this is noise


def make_accelerator(cpu: bool = False, tensorboard: Path | None = None, precision: str = "auto") -> Accelerator:
    """An accelerator for the GPU, if there is one and not ``cpu``, else for the CPU.

    Args:
        tensorboard: log to the subfolder ``tensorboard`` of this folder.
        precision: ``"float32"``, ``"bfloat16"``, ``"float16"`` or ``"auto"``, the fastest safe one. With
            several processes, the first one chooses for all.
    """
    # Processes share a batch of the recipe's size, so that a step sees as many images as with one process.
    sharing = DataLoaderConfiguration(split_batches=True)
    keep_freed_memory()
    PartialState(cpu=cpu)
    AcceleratorState._reset_state()  # otherwise the precision of an earlier accelerator would stay
    if precision == "float16" and PartialState().device.type == "cpu":
        PartialState().print("The run was started in float16, which needs a GPU: it resumes in float32.", flush=True)
        precision = "float32"
    mixed_precision = PRECISIONS.get(precision) or broadcast_object_list([fastest_precision(cpu)])[0]
    accelerator = Accelerator(
        mixed_precision=mixed_precision,
        cpu=cpu,
        dataloader_config=sharing,
        log_with="tensorboard" if tensorboard else None,
        project_dir=tensorboard,
    )
    # `accelerate launch --cpu --num_processes 2` needs MPI. Without it, it silently starts one process.
    if os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in os.environ and "RANK" not in os.environ:
        print(
            "accelerate launch started one process: for several on CPUs use `torchrun --nproc-per-node 2 main.py …`.",
            flush=True,
        )
    return accelerator


def fastest_precision(cpu: bool = False) -> str:
    """``"bf16"`` where the hardware computes in bfloat16, ``"fp16"`` on older GPUs, else ``"no"``.

    A CPU without AVX512-BF16 and AMX emulates bfloat16, which is many times slower than float32. With them,
    bfloat16 is faster on some CPUs (AMD EPYC) and slower on others (Intel Xeon without AMX), so both are timed.
    """
    if torch.cuda.is_available() and not cpu:
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if torch.backends.mps.is_available() and not cpu:
        return "no"
    # private in PyTorch; an older version may lack them
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    if not any(getattr(torch.cpu, check, lambda: False)() for check in checks):
        return "no"
    return "bf16" if bfloat16_speedup() >= MIN_SPEEDUP else "no"


@cache
def bfloat16_speedup(size: int = 8, side: int = 768) -> float:
    """Time in float32 divided by time in bfloat16, on this CPU, of a convolution and a matrix product.

    Forward and backward, for ``size`` images and matrices of ``side`` × ``side``. It takes a quarter of a
    second, once per process.
    """
    generator = torch.Generator()  # its own, so that the run's random state does not change
    images = torch.rand(size, 64, 32, 32, generator=generator).to(memory_format=torch.channels_last).requires_grad_()
    kernels = torch.rand(64, 64, 3, 3, generator=generator).to(memory_format=torch.channels_last).requires_grad_()
    a, b = (torch.rand(side, side, generator=generator).requires_grad_() for _ in range(2))
    seconds = {False: math.inf, True: math.inf}
    with torch.enable_grad():
        for half in (False, True, False, True, False, True):  # alternating; the first of each is a warm-up
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss = F.conv2d(images, kernels, padding=1).float().mean() + (a @ b).float().mean()
            loss.backward()
            seconds[half] = min(seconds[half], time.perf_counter() - start)
    return seconds[False] / seconds[True]


def precision_of(accelerator: Accelerator) -> str:
    """PyTorch's name for the precision of ``accelerator``."""
    return next(name for name, value in PRECISIONS.items() if value == accelerator.mixed_precision)


def keep_freed_memory() -> None:
    """Make malloc keep freed memory for the next step.

    By default, glibc returns large blocks to the system, which zeroes them page by page when the next step
    allocates them again. That takes a fifth of a training step on a CPU.
    """
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_max = -1, -4  # mallopt's names for them, from malloc.h
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_max, 0)  # allocate all blocks from the heap …
        mallopt(trim_threshold, -1)  # … and never shrink it


def compile_where_it_pays(model: nn.Module, accelerator: Accelerator, steps: int) -> None:
    """Compile ``model`` at its first step if ``steps`` steps save more than the half minute that this takes.

    On a GPU it does not pay off: the networks are trained before they are compiled.
    """
    if accelerator.device.type == "cpu" and accelerator.num_processes == 1 and steps >= 1000 and can_compile():
        model.compile()


def can_compile() -> bool:
    """Whether torch.compile works here. It needs a C++ compiler and Python's headers and fails in many ways without."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # warns on machines without CUDA
    try:
        torch.compile(torch.sin)(torch.ones(1))
    except Exception:
        print("torch.compile does not work here: training takes longer but is otherwise the same.", flush=True)
        return False
    return True


@contextlib.contextmanager
def explain_out_of_memory(batch_size: int) -> Iterator[None]:
    """Turn a GPU's out-of-memory error into a TrainingError that says which batch size to try."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"the GPU is out of memory with batches of {batch_size} images: try {max(1, batch_size // 2)} "
            "(main.py: --batch-size; notebook: batch_size in utils/recipes.py)."
        ) from error


def describe(accelerator: Accelerator) -> str:
    """Hardware and precision, for logs and pages: "AMD EPYC, 2 threads, bfloat16"."""
    precision = precision_of(accelerator)
    times = f"{accelerator.num_processes} × " if accelerator.num_processes > 1 else ""
    if accelerator.device.type == "cuda":
        return f"{times}{torch.cuda.get_device_name()}, {precision}"
    threads = torch.get_num_threads()
    return f"{times}{cpu_name()}, {threads} thread{'s' * (threads > 1)}, {precision}"


def time_hint(accelerator: Accelerator, name: str) -> str:
    """For those without a GPU: how long the published run ``name`` took, and where to get a GPU; "" with one."""
    if accelerator.device.type != "cpu":
        return ""
    hint = "There is no GPU here (Colab has free ones: Runtime → Change runtime type → T4 GPU)."
    published = ROOT / "static" / name / "run.json"
    if published.exists():
        facts = json.loads(published.read_text("utf-8"))
        minutes = facts["epochs"] * facts["seconds_per_epoch"] / 60
        hint += f"\n{facts['epochs']} epochs of {facts['data']} took {minutes:.0f} minutes on {facts['hardware']}."
    return hint


def cpu_name() -> str:
    """The processor's name, or its architecture if the system does not tell the name."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
