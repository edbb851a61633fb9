"""A function of tensors as a CUDA graph: one launch for all of its kernels."""

import gc
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

WARM_UP = (
    3  # calls before the recording, in which libraries choose their kernels and allocate memory
)
Tensors = Sequence[Tensor]
Result = TypeVar("Result")


class GraphedFunction:
    """Calls a function; on a CUDA GPU, records its kernels at the first call and replays them.

    The kernels of a small network take less time than Python needs to launch them, one after the
    other. A CUDA graph launches all of them with one call. A replay does what the function would do
    with the new inputs: it draws new random numbers, updates the buffers of ``model`` and sets the
    gradients of its parameters. Only the shapes are fixed: an epoch's last, smaller batch calls the
    function itself, as does everything on other devices and in inference mode. If a recording
    fails, a line says so, and all calls are calls of the functions.

    Source: https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs/
    """

    # Shared by all instances: after one recording has failed, none is tried.
    recording_works = True

    def __init__(self, function: Callable[..., Tensors], model: nn.Module | None = None) -> None:
        self.function = function
        self.parameters = list(model.parameters()) if model else []
        self.buffers = list(model.buffers()) if model else []
        self.replay: Callable[[], None] | None = None
        # These are in the graph's own memory; each replay overwrites them.
        self.inputs: Tensors = ()
        self.outputs: Tensors = ()
        self.gradients: Tensors = ()

    def __call__(self, *inputs: Tensor) -> Tensors:
        if not self.recording_works or not can_record(*inputs):
            return self.function(*inputs)
        if self.replay is None:
            self.record(*inputs)
        if self.replay is None or not self.has_recorded_shapes(*inputs):
            return self.function(*inputs)
        for recorded, new in zip(self.inputs, inputs, strict=True):
            recorded.copy_(new)
        self.replay()
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient  # zero_grad() has removed it
        return [output.clone() for output in self.outputs]

    def has_recorded_shapes(self, *inputs: Tensor) -> bool:
        """Whether the inputs have the shapes of those that were recorded."""
        return [tensor.shape for tensor in inputs] == [tensor.shape for tensor in self.inputs]

    def record(self, *inputs: Tensor) -> None:
        """Record the function; if that fails, print one line and call functions from now on."""
        device = inputs[0].device
        buffers_before = [buffer.clone() for buffer in self.buffers]
        self.inputs = [tensor.clone() for tensor in inputs]

        def work() -> tuple[Tensors, Tensors]:
            for parameter in self.parameters:
                # backward() then stores its result, in the graph's memory, instead of adding it.
                parameter.grad = None
            outputs = self.function(*self.inputs)
            return outputs, [parameter.grad for parameter in self.parameters]  # type: ignore[misc]

        warm_up(work, device)
        try:
            self.replay, (self.outputs, self.gradients) = capture(work, device)
        except Exception as error:
            # The first error: leaving a recording that has failed raises a second one.
            cause = error.__context__ or error
            reason, _, _ = f"{type(cause).__name__}: {cause}".partition("\n")
            print(
                f"CUDA graphs do not work here ({reason}): "
                "each step takes longer but is otherwise the same.",
                flush=True,
            )
            GraphedFunction.recording_works = False
        for parameter in self.parameters:
            parameter.grad = None
        for buffer, before in zip(self.buffers, buffers_before, strict=True):
            buffer.copy_(before)


def can_record(*inputs: Tensor) -> bool:
    """Whether the inputs are on a CUDA GPU, and gradients may be needed."""
    return inputs[0].is_cuda and not torch.is_inference_mode_enabled()


def warm_up(work: Callable[[], object], device: torch.device) -> None:
    """Call ``work`` on a stream of its own, as PyTorch asks for before a recording.

    The random state is restored.
    """
    main, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    side.wait_stream(main)
    with torch.random.fork_rng(devices=[device]), torch.cuda.stream(side):
        for _ in range(WARM_UP):
            work()
    main.wait_stream(side)


def capture(work: Callable[[], Result], device: torch.device) -> tuple[Callable[[], None], Result]:
    """Record ``work``.

    Returns: a function that replays it, and its result, which each replay overwrites.
    """
    stream, generator = (
        torch.cuda.current_stream(device),
        torch.cuda.default_generators[device.index],
    )
    random_state, graph = generator.clone_state(), torch.cuda.CUDAGraph()
    gc.collect()  # an old graph that is freed in the meantime would end the recording
    try:
        with torch.cuda.graph(graph):
            result = work()
    except Exception:
        # What a failed recording would leave behind: its stream, and a random state that only works
        # in a recording.
        torch.cuda.set_stream(stream)
        generator.graphsafe_set_state(random_state)
        raise
    return graph.replay, result
