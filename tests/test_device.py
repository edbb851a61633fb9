"""Device, precision, random state, memory, and when PyTorch's compiler is called."""

import builtins
import copy
import platform
from functools import partial
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from models.model9 import TransformerModel
from utils import device
from utils.device import (
    can_compute,
    choose_device,
    choose_precision,
    compile_where_it_pays,
    fast_precision,
    forked_random_state,
    hardware_of,
    is_of_the_compiler,
    memory_format,
    random_state,
    set_random_state,
    stop_compiling,
)

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
MPS = torch.device("mps")


def set_hardware(monkeypatch, gpu_bfloat16=False, amx=False, avx512=False, vendor=""):
    """Pretend that the GPU and the CPU can do this, and nothing else."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu_bfloat16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
    monkeypatch.setattr(device, "cpu_field", {"vendor_id": vendor}.get)


# The device


@pytest.fixture
def keeps_memory(monkeypatch):
    """The calls of keep_freed_memory."""
    calls = []
    monkeypatch.setattr(device, "keep_freed_memory", lambda: calls.append("called"))
    return calls


@pytest.mark.parametrize(
    "cuda, mps, cpu, wanted",
    [
        (True, False, False, torch.device("cuda", 1)),
        (False, True, False, MPS),
        (False, False, False, CPU),
        (True, True, True, CPU),
    ],
)
def test_gpu_is_chosen_unless_the_cpu_is_asked_for(
    monkeypatch, keeps_memory, cuda, mps, cpu, wanted
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert choose_device(cpu) == wanted
    assert bool(keeps_memory) == (wanted == CPU)


def test_freed_memory_can_be_kept_here():
    device.keep_freed_memory()
    assert torch.ones(1 << 20).sum() == 1 << 20


def test_freed_memory_is_left_alone_with_another_c_library(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(device.ctypes, "CDLL", None)  # cannot be called
    device.keep_freed_memory()


def test_no_channels_last_on_mps():
    assert memory_format(CPU) == torch.channels_last
    assert memory_format(CUDA) == torch.channels_last
    assert memory_format(MPS) == torch.contiguous_format


# Precision


@pytest.mark.parametrize(
    "kind, gpu_bfloat16, amx, avx512, vendor, precision",
    [
        ("cuda", True, False, False, "", "bfloat16"),
        ("cuda", False, True, True, "AuthenticAMD", "float16"),  # a T4
        ("cpu", True, True, True, "GenuineIntel", "bfloat16"),
        ("cpu", True, False, True, "GenuineIntel", "float32"),
        ("cpu", True, False, True, "AuthenticAMD", "bfloat16"),
        ("cpu", True, False, False, "AuthenticAMD", "float32"),
        ("mps", True, True, True, "", "float32"),
    ],
)
def test_fast_precision_follows_from_the_hardware(
    monkeypatch, kind, gpu_bfloat16, amx, avx512, vendor, precision
):
    set_hardware(monkeypatch, gpu_bfloat16, amx, avx512, vendor)
    assert fast_precision(torch.device(kind)) == precision


@pytest.mark.parametrize(
    "kind, gpu_bfloat16, precision, wanted",
    [
        ("cuda", False, "float32", True),
        ("cuda", False, "float16", True),
        ("cuda", False, "bfloat16", False),  # a T4 would emulate it
        ("cuda", True, "bfloat16", True),
        ("cpu", False, "float32", True),
        ("cpu", False, "bfloat16", True),
        ("cpu", True, "float16", False),
        ("mps", True, "float32", True),
        ("mps", True, "bfloat16", False),
        ("mps", True, "float16", False),
    ],
)
def test_device_can_compute_in_some_precisions(monkeypatch, kind, gpu_bfloat16, precision, wanted):
    set_hardware(monkeypatch, gpu_bfloat16)
    assert can_compute(torch.device(kind), precision) is wanted


def test_new_run_is_fast(monkeypatch):
    set_hardware(monkeypatch, amx=True)
    assert choose_precision("auto", None, CPU) == "bfloat16"


@pytest.mark.parametrize("wanted", ["float32", "bfloat16", "float16"])
def test_precision_of_the_recipe_wins(monkeypatch, capsys, wanted):
    set_hardware(monkeypatch, amx=True)
    assert choose_precision(wanted, "float16", CPU) == wanted
    assert choose_precision(wanted, None, CPU) == wanted
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("saved", ["float32", "bfloat16"])
@pytest.mark.parametrize("amx", [True, False])
def test_resumed_run_keeps_its_precision(monkeypatch, capsys, saved, amx):
    set_hardware(monkeypatch, amx=amx)
    assert choose_precision("auto", saved, CPU) == saved
    assert capsys.readouterr().out == ""


def test_resumed_run_says_if_the_device_cannot_compute_in_its_precision(monkeypatch, capsys):
    set_hardware(monkeypatch, amx=True)
    assert choose_precision("auto", "float16", CPU) == "bfloat16"
    output = capsys.readouterr().out
    assert output.count("\n") == 1
    assert "started in float16" in output
    assert "resumes in bfloat16" in output


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_autocast_computes_in_the_precision_with_weights_in_float32(precision):
    layer = nn.Linear(2, 2)
    with device.autocast(CPU, precision):
        output = layer(torch.ones(1, 2))
    assert output.dtype == getattr(torch, precision)
    assert layer.weight.dtype == torch.float32


# Random state


def test_random_state_can_be_restored():
    torch.manual_seed(0)
    state = random_state(CPU)
    first = torch.rand(3)
    set_random_state(state, CPU)
    assert torch.equal(torch.rand(3), first)


def test_random_state_of_a_gpu_is_ignored_on_a_cpu():
    state = random_state(CPU) | {"cuda": torch.zeros(16, dtype=torch.uint8)}
    set_random_state(state, CPU)
    assert torch.equal(torch.get_rng_state(), state["cpu"])


def test_random_numbers_drawn_inside_do_not_count():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with forked_random_state(CPU):
        torch.rand(3)
        assert not torch.equal(torch.get_rng_state(), before)
    assert torch.equal(torch.get_rng_state(), before)


def test_random_numbers_drawn_before_an_exception_do_not_count():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), forked_random_state(CPU):
        torch.rand(3)
        raise ZeroDivisionError
    assert torch.equal(torch.get_rng_state(), before)


# The name of the hardware


def test_hardware_of_a_cpu_has_its_threads_and_the_precision(monkeypatch):
    monkeypatch.setattr(device, "cpu_field", {"model name": "AMD EPYC"}.get)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert hardware_of(CPU, "bfloat16") == "AMD EPYC, 2 threads, bfloat16"


def test_one_thread_is_singular(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert ", 1 thread, " in hardware_of(CPU, "float32")


def test_unknown_cpu_is_named_after_its_architecture(monkeypatch):
    monkeypatch.setattr(device, "cpu_field", {"model name": ""}.get)
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert hardware_of(CPU, "float32").startswith("riscv64, ")


def test_hardware_of_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert hardware_of(CUDA, "float16") == "Tesla T4, float16"
    assert hardware_of(MPS, "float32") == "arm64 GPU (mps), float32"


def test_unknown_fields_of_the_cpu_are_empty(monkeypatch):
    def no_such_file(*arguments):
        raise FileNotFoundError

    assert device.cpu_field("no such field") == ""
    monkeypatch.setattr(builtins, "open", no_such_file)
    assert device.cpu_field("model name") == ""


# The compiler


@pytest.mark.parametrize(
    "kind, steps, wanted",
    [
        ("cpu", 1000, True),
        ("cpu", 999, False),
        ("cuda", 1000, False),
        ("mps", 1000, False),
    ],
)
def test_network_is_compiled_where_it_pays(monkeypatch, kind, steps, wanted):
    compiled = []
    model = nn.Linear(1, 1)
    monkeypatch.setattr(model, "compile", lambda: compiled.append(model))
    compile_where_it_pays(model, torch.device(kind), steps)
    assert compiled == ([model] if wanted else [])


@pytest.fixture
def plain_and_compiled(monkeypatch):
    """A network and a compiled copy of it, each after one forward and backward pass.

    It is traced as for training, but without the minute in which PyTorch generates C++.
    """
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch.manual_seed(0)
    plain = TransformerModel(a=8)
    images = torch.randn(8, 3, 32, 32)
    compiled = copy.deepcopy(plain)
    compile_where_it_pays(compiled, CPU, steps=1000)
    plain(images).square().sum().backward()
    compiled(images).square().sum().backward()
    return plain, compiled


def test_compiled_network_computes_the_same(plain_and_compiled):
    plain, compiled = plain_and_compiled
    parameters = zip(plain.named_parameters(), compiled.parameters(), strict=True)
    for (name, parameter), other in parameters:
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-2, atol=1e-4, msg=name)


def test_checkpoint_fits_a_compiled_network(plain_and_compiled):
    plain, compiled = plain_and_compiled
    state = compiled.state_dict()
    torch.testing.assert_close(state, plain.state_dict(), rtol=1e-4, atol=1e-5)


@pytest.fixture
def restored_compiler():
    """Afterwards, networks may be compiled again."""
    torch.compiler.reset()  # forgets what an earlier test compiled
    yield
    torch.compiler.set_stance("default")
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled")
def test_missing_compiler_is_an_error_of_the_compiler(restored_compiler):
    no_compiler = {"cpp.cxx": ("/bin/false",), "force_disable_caches": True}
    with torch._inductor.config.patch(no_compiler), pytest.raises(Exception) as caught:
        torch.compile(torch.sin)(torch.ones(1))
    assert is_of_the_compiler(caught.value)


def test_other_error_is_none_of_the_compiler():
    with pytest.raises(RuntimeError) as caught:
        torch.ones(2) + torch.ones(3)
    assert not is_of_the_compiler(caught.value)


def test_compiled_network_is_called_as_it_is_after_the_compiler_has_failed(restored_compiler):
    def backend(graph, inputs):
        pytest.fail("compiled")

    model = nn.Linear(1, 1)
    model.compile(backend=backend)
    stop_compiling()
    assert model(torch.ones(1, 1)).shape == (1, 1)


def test_python_that_pytorch_cannot_compile_under_costs_one_line(
    monkeypatch, capsys, restored_compiler
):
    model = nn.Linear(1, 1)
    monkeypatch.setattr(model, "compile", Mock(side_effect=RuntimeError("not supported")))
    compile_where_it_pays(model, CPU, steps=1000)
    output = capsys.readouterr().out
    assert output.count("\n") == 1
    assert "torch.compile does not work" in output
