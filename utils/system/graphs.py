"""A function of tensors as a CUDA graph: one launch for all of its kernels."""

import gc
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

WARM_UP = 3  # calls before the recording, in which libraries choose their kernels and allocate memory
Tensors = Sequence[Tensor]
Result = TypeVar("Result")


class GraphedFunction:
    """Calls a function; on one GPU, it records the function's kernels at the first call and replays them from then on.

    The kernels of a small network take less time than Python needs to launch them, one after the other. A CUDA graph
    launches all of them with one call. A replay computes what the function would: from other inputs, with new random
    numbers, it updates the buffers of ``model`` and sets the gradients of its parameters. Only the shapes are fixed: an
    epoch's last, smaller batch goes to the function itself, as does everything on a CPU, in several processes and in
    inference mode. If a recording fails, a line says so, and all calls go to the functions.

    Source: https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs/
    """

    works = True  # for all of them: a failed recording leaves the random state of the others behind

    def __init__(self, function: Callable[..., Tensors], model: nn.Module | None = None) -> None:
        self.function = function
        self.parameters = list(model.parameters()) if model else []
        self.buffers = list(model.buffers()) if model else []
        self.replay: Callable[[], None] | None = None
        self.inputs: Tensors = ()  # in the graph's own memory, as outputs and gradients; each replay overwrites these
        self.outputs: Tensors = ()
        self.gradients: Tensors = ()

    def __call__(self, *inputs: Tensor) -> Tensors:
        if self.works and can_record(*inputs):
            if self.replay is None:
                self.record(*inputs)
            if self.replay and all(own.shape == given.shape for own, given in zip(self.inputs, inputs)):
                for own, given in zip(self.inputs, inputs):
                    own.copy_(given)
                self.replay()
                for parameter, gradient in zip(self.parameters, self.gradients):
                    parameter.grad = gradient  # zero_grad() has removed it
                return [output.clone() for output in self.outputs]
        return self.function(*inputs)

    def record(self, *inputs: Tensor) -> None:
        device, before = inputs[0].device, [buffer.clone() for buffer in self.buffers]
        self.inputs = [tensor.clone() for tensor in inputs]

        def work() -> tuple[Tensors, Tensors]:
            for parameter in self.parameters:
                parameter.grad = None  # backward() then stores its result, in the graph's memory, instead of adding it
            outputs = self.function(*self.inputs)
            return outputs, [parameter.grad for parameter in self.parameters]  # type: ignore[misc]

        warm_up(work, device)
        try:
            self.replay, (self.outputs, self.gradients) = capture(work, device)
        except Exception as error:
            cause = error.__context__ or error  # not the end of the recording, which fails in turn
            reason, _, _ = f"{type(cause).__name__}: {cause}".partition("\n")
            told = f"CUDA graphs do not work here ({reason}): each step takes longer but is otherwise the same."
            print(told, flush=True)
            GraphedFunction.works = False
        for parameter in self.parameters:
            parameter.grad = None
        for buffer, value in zip(self.buffers, before):
            buffer.copy_(value)


def can_record(*inputs: Tensor) -> bool:
    """Whether the inputs are on a GPU, and this process trains alone."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return inputs[0].is_cuda and not distributed and not torch.is_inference_mode_enabled()


def warm_up(work: Callable[[], object], device: torch.device) -> None:
    """Call ``work`` on a stream of its own, as PyTorch asks for before a recording; the random state is restored."""
    main, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    side.wait_stream(main)
    with torch.random.fork_rng(devices=[device]), torch.cuda.stream(side):
        for _ in range(WARM_UP):
            work()
    main.wait_stream(side)


def capture(work: Callable[[], Result], device: torch.device) -> tuple[Callable[[], None], Result]:
    """Record ``work``. Returns: a function that replays it, and its result, which each replay overwrites."""
    stream, generator = torch.cuda.current_stream(device), torch.cuda.default_generators[device.index]
    random_state, graph = generator.clone_state(), torch.cuda.CUDAGraph()
    gc.collect()  # an old graph that is freed in the meantime would end the recording
    try:
        with torch.cuda.graph(graph):
            result = work()
    except Exception:
        # What a failed recording would leave behind: its stream, and a random state that only works in a recording.
        torch.cuda.set_stream(stream)
        generator.graphsafe_set_state(random_state)
        raise
    return graph.replay, result
