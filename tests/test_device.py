"""Device, precision, memory, and when PyTorch's compiler is called."""

import copy
import platform
import resource
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from models.model9 import TransformerModel
from tests.small import PROCESSES
from utils import cpu, device
from utils.device import fast_precision, hardware_of, make_accelerator
from utils.transforms import memory_format

CPU = SimpleNamespace(device=torch.device("cpu"), num_processes=1)
GPU = SimpleNamespace(device=torch.device("cuda"), num_processes=1)
TWO_CPUS = SimpleNamespace(device=torch.device("cpu"), num_processes=2)


@pytest.mark.parametrize(
    "accelerator, steps, works, wanted",
    [(CPU, 2352, True, 1), (CPU, 504, True, 0), (CPU, 2352, False, 0), (GPU, 2352, True, 0), (TWO_CPUS, 2352, True, 0)],
)
def test_compiled_where_it_pays(monkeypatch, accelerator, steps, works, wanted):
    called = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: called.append(self))
    monkeypatch.setattr(cpu, "can_compile", lambda: works)
    cpu.compile_where_it_pays(nn.Linear(1, 1), accelerator, steps)
    assert len(called) == wanted


def test_compiled_model_computes_the_same_and_keeps_its_names(monkeypatch):
    """Traced as for training, but without the minute in which PyTorch generates and compiles C++."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch.manual_seed(0)
    plain, images = TransformerModel(a=8), torch.randn(8, 3, 32, 32)
    model = copy.deepcopy(plain)
    cpu.compile_where_it_pays(model, CPU, steps=1000)
    for network in (plain, model):
        network(images).square().sum().backward()
    for (name, one), two in zip(plain.named_parameters(), model.parameters()):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-2, atol=1e-4, msg=name)
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=1e-4, atol=1e-5)  # a checkpoint fits both


def test_training_works_without_a_compiler(capsys):
    torch.compiler.reset()  # forgets what an earlier test compiled
    with torch._inductor.config.patch({"cpp.cxx": ("/bin/false",), "force_disable_caches": True}):
        assert not cpu.can_compile()
    assert capsys.readouterr().out.count("\n") == 1
    torch.compiler.reset()


def test_hardware_is_named_as_what_it_is(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert ", 1 thread, " in hardware_of(make_accelerator(cpu=True))
    two = SimpleNamespace(device=torch.device("cpu"), num_processes=2, mixed_precision="no")
    assert hardware_of(two).startswith("2 × ") and hardware_of(two).endswith("1 thread, float32")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    mac = SimpleNamespace(device=torch.device("mps"), num_processes=1, mixed_precision="no")
    assert hardware_of(mac) == "arm64 GPU (mps), float32" and device.cpu_field("no such field") == ""


@pytest.mark.parametrize("kind, gpu_bf16, amx, avx512, vendor, precision", [
    ("cuda", True, False, False, "", "bfloat16"),
    ("cuda", False, True, True, "AuthenticAMD", "float16"),  # a T4
    ("cpu", True, True, True, "GenuineIntel", "bfloat16"),
    ("cpu", True, False, True, "GenuineIntel", "float32"),
    ("cpu", True, False, True, "AuthenticAMD", "bfloat16"),
    ("cpu", True, False, False, "AuthenticAMD", "float32"),
    ("mps", True, True, True, "", "float32"),
])  # fmt: skip
def test_precision_follows_from_the_hardware(monkeypatch, kind, gpu_bf16, amx, avx512, vendor, precision):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
    monkeypatch.setattr(device, "cpu_field", {"vendor_id": vendor}.get)
    assert fast_precision(torch.device(kind)) == precision


def test_no_channels_last_on_mps():
    formats = [memory_format(torch.device(kind)) for kind in ("cpu", "cuda", "mps")]
    assert formats == [torch.channels_last, torch.channels_last, torch.contiguous_format]


def pages_asked_for() -> int:
    """How many pages of memory the system provides for 256 MB that are freed at once."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 26)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_used_again():
    with PROCESSES.Pool(1) as process:  # another one, because the setting stays
        given_back = [process.apply(pages_asked_for) for _ in range(4)]
        process.apply(cpu.keep_freed_memory)
        kept = [process.apply(pages_asked_for) for _ in range(4)]
    assert given_back[-1] > 100 and kept[-1] < given_back[-1] / 10


def test_precision_can_be_forced_and_another_time_be_another(capsys):
    """What began in float16 is resumed in float32 without a GPU."""
    for precision in ("bfloat16", "float32", "bfloat16"):
        accelerator = make_accelerator(cpu=True, precision=precision)
        assert device.precision_of(accelerator) == precision and hardware_of(accelerator).endswith(precision)
    assert not capsys.readouterr().out
    accelerator = make_accelerator(cpu=True, precision="float16")
    assert device.precision_of(accelerator) == "float32" and accelerator.scaler is None
    assert capsys.readouterr().out == "The run was started in float16, which needs a GPU: it resumes in float32.\n"
