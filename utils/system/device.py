"""The device and its precision, which Hugging Face accelerate applies in the training loop."""

import os
import platform
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration, broadcast_object_list

from utils.system.cpu import keep_freed_memory
from utils.system.errors import TrainingError

PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}  # PyTorch's names and accelerate's


def join_processes(cpu: bool = False) -> PartialState:
    """The device of this process and its place among those of a launcher; TrainingError if its variables are incomplete."""
    for name in [name for name in os.environ if name.startswith("ACCELERATE_") and name != "ACCELERATE_USE_CPU"]:
        del os.environ[name]  # they would change the training, for example accumulate gradients
    if not torch.distributed.is_initialized():
        PartialState._reset_state()  # otherwise the device of an earlier run would stay
    # Without a GPU, accelerate forms a group of processes only when it is told to use the CPU.
    no_gpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
    try:
        return PartialState(cpu=cpu or no_gpu)
    except (ValueError, KeyError, RuntimeError) as error:
        reason = f"the variables of a launcher, such as LOCAL_RANK, are incomplete ({str(error).splitlines()[0]})"
        raise TrainingError(f"{reason}: start with torchrun, or unset them.") from error


def broadcast(value: Any) -> Any:
    """The first process's ``value``, in all processes."""
    return broadcast_object_list([value])[0]


def make_accelerator(cpu: bool = False, tensorboard: Path | None = None, precision: str = "auto") -> Accelerator:
    """An accelerator for the GPU, if there is one and not ``cpu``, else for the CPU.

    With ``tensorboard``, it logs to a subfolder of that folder. ``precision`` "auto" is what ``fast_precision`` says.
    """
    state = join_processes(cpu)
    AcceleratorState._reset_state()  # otherwise the precision of an earlier accelerator would stay
    # Processes share a batch of the recipe's size, so that a step sees as many images as with one process. The last,
    # smaller batch is filled up with the epoch's first images: up to 176 images of CIFAR-10 are seen twice.
    sharing, device = DataLoaderConfiguration(split_batches=True), state.device
    if precision == "float16" and device.type == "cpu":
        state.print("The run was started in float16, which needs a GPU: it resumes in float32.", flush=True)
        precision = "float32"
    if precision == "auto":
        precision = broadcast(fast_precision(device))
    if device.type == "cpu":
        keep_freed_memory()
    return Accelerator(
        mixed_precision=PRECISIONS[precision],
        cpu=device.type == "cpu",
        dataloader_config=sharing,
        log_with="tensorboard" if tensorboard else None,
        project_dir=tensorboard,
    )


def fast_precision(device: torch.device) -> str:
    """The precision that trains fast on ``device``: a rule, so that the same command always trains in the same one.

    GPU: bfloat16 if it computes in it, else float16. CPU: bfloat16 with AMX; with AVX512-BF16 only on AMD, because
    Intel's CPUs without AMX take longer in bfloat16 than in float32. All others would emulate it: float32.
    """
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    if device.type == "cpu":
        names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # private; an older PyTorch may lack them
        amx, avx512 = (getattr(torch.cpu, name, bool)() for name in names)
        if amx or (avx512 and cpu_field("vendor_id") == "AuthenticAMD"):
            return "bfloat16"
    return "float32"


def precision_of(accelerator: Accelerator) -> str:
    """PyTorch's name for the precision of ``accelerator``."""
    return next(name for name, value in PRECISIONS.items() if value == accelerator.mixed_precision)


def hardware_of(accelerator: Accelerator) -> str:
    """Hardware and precision, for logs and pages: "AMD EPYC, 2 threads, bfloat16"."""
    kind, threads = accelerator.device.type, torch.get_num_threads()
    if kind == "cuda":
        hardware = torch.cuda.get_device_name()
    elif kind == "cpu":
        hardware = f"{cpu_field('model name') or platform.machine()}, {threads} thread{'s' * (threads > 1)}"
    else:
        hardware = f"{platform.machine()} GPU ({kind})"
    times = f"{accelerator.num_processes} × " if accelerator.num_processes > 1 else ""
    return f"{times}{hardware}, {precision_of(accelerator)}"


def cpu_field(name: str) -> str:
    """A field of the first processor in /proc/cpuinfo; "" if the system has none."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith(name))
    except (OSError, StopIteration):
        return ""
