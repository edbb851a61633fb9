"""What makes training faster on a CPU: memory that is used again, and PyTorch's compiler."""

import ctypes
import logging
import platform

import torch
from accelerate import Accelerator
from torch import nn


def keep_freed_memory() -> None:
    """Make malloc keep freed memory for the next step.

    By default, glibc returns large blocks to the system, which zeroes them for the next step: a fifth of a step's time.
    """
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_max = -1, -4  # mallopt's names for them, from malloc.h
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_max, 0)  # allocate all blocks from the heap …
        mallopt(trim_threshold, -1)  # … and never shrink it


def compile_where_it_pays(model: nn.Module, accelerator: Accelerator, steps: int) -> None:
    """Compile ``model`` if ``steps`` steps save more than the half minute it takes; on a GPU, they never do."""
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
