"""Which device and which precision: Hugging Face accelerate carries both through the loop."""

import contextlib
import ctypes
import json
import logging
import platform
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch import nn

from utils.errors import TrainingError
from utils.recipes import Recipe

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}  # accelerate's names; anything else is full precision


def make_accelerator(cpu: bool = False, tensorboard: Path | None = None) -> Accelerator:
    """The machine's GPU if it has one and ``cpu`` does not forbid it, else its CPU, in the fastest precision that is
    safe there. ``tensorboard``: the folder whose subfolder of that name TensorBoard will read."""
    # A batch of the recipe's size is shared out: on many devices each step sees what it sees on one.
    sharing = DataLoaderConfiguration(split_batches=True)
    keep_freed_memory()
    return Accelerator(
        mixed_precision=fastest_precision(cpu),
        cpu=cpu,
        dataloader_config=sharing,
        log_with="tensorboard" if tensorboard else None,
        project_dir=tensorboard,
    )


def fastest_precision(cpu: bool = False) -> str:
    """``"bf16"`` where the hardware computes in bfloat16, ``"fp16"`` on older GPUs, else ``"no"``.

    A CPU without AVX512-BF16 or AMX emulates bfloat16, many times slower than float32.
    """
    if torch.cuda.is_available() and not cpu:
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if torch.backends.mps.is_available() and not cpu:
        return "no"
    # PyTorch names these two checks privately; an older version may lack them
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return "bf16" if any(getattr(torch.cpu, check, lambda: False)() for check in checks) else "no"


def keep_freed_memory() -> None:
    """Let the memory that one step frees serve the next.

    Linux' malloc hands large blocks back to the system at once, which fills them with zeros, page by page,
    when the next step asks for them: a fifth of the time of a CPU's step.
    """
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_max = -1, -4  # mallopt's names for them, from malloc.h
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_max, 0)  # no block straight from the system …
        mallopt(trim_threshold, -1)  # … and none back to it


def compile_where_it_pays(model: nn.Module, accelerator: Accelerator, steps: int) -> None:
    """Let PyTorch compile ``model`` at its first step if ``steps`` steps win back the half minute that it takes.

    A GPU is through with these networks before they are compiled.
    """
    if accelerator.device.type == "cpu" and accelerator.num_processes == 1 and steps >= 1000 and can_compile():
        model.compile()


def can_compile() -> bool:
    """Whether torch.compile works here: it wants a C++ compiler and Python's headers, and says so in many ways."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # warns on machines without CUDA
    try:
        torch.compile(torch.sin)(torch.ones(1))
    except Exception:
        print("torch.compile does not work here: the training takes longer, and is the same otherwise.", flush=True)
        return False
    return True


@contextlib.contextmanager
def room_for(batch_size: int) -> Iterator[None]:
    """TrainingError that says which batch size to try, where a GPU's memory is too small for ``batch_size`` images."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"the GPU's memory is too small for batches of {batch_size} images: try {max(1, batch_size // 2)} "
            "(main.py: --batch-size; notebook: batch_size in utils/recipes.py)."
        ) from error


def describe(accelerator: Accelerator) -> str:
    """Hardware and precision, as logs and pages name them: "AMD EPYC, 2 threads, bfloat16"."""
    precision = {"bf16": "bfloat16", "fp16": "float16"}.get(accelerator.mixed_precision, "float32")
    times = f"{accelerator.num_processes} × " if accelerator.num_processes > 1 else ""
    if accelerator.device.type == "cuda":
        return f"{times}{torch.cuda.get_device_name()}, {precision}"
    threads = torch.get_num_threads()
    return f"{times}{cpu_name()}, {threads} thread{'s' * (threads > 1)}, {precision}"


def time_hint(accelerator: Accelerator, recipe: Recipe) -> str:
    """What someone without a GPU should know: how long the published run took, and where GPUs are; "" with one."""
    if accelerator.device.type != "cpu":
        return ""
    hint = "There is no GPU here (Colab lends one: Runtime → Change runtime type → T4 GPU)."
    published = Path(__file__).parents[1] / "static" / recipe.name / "run.json"
    if published.exists():
        facts = json.loads(published.read_text("utf-8"))
        minutes = facts["epochs"] * facts["seconds_per_epoch"] / 60
        hint += f" {facts['epochs']} epochs of {facts['data']} took {minutes:.0f} minutes on {facts['hardware']}."
    return hint


def cpu_name() -> str:
    """The processor's name; the bare architecture where the system does not tell."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
