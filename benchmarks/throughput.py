"""Images per second, compared with the classic pipeline: ``python -m benchmarks.throughput 7 8 9``.

Both pipelines train and test the same network on the same random images, in alternating rounds. Each has
its own process, because ours changes how its process allocates memory. The table shows medians. Then each
session is started as by ``make session<N>``, on ``$DATA`` or the digits, until its first batch.
``--readme`` also writes the table into the README, beside those of other machines.
"""

import argparse
import contextlib
import io
import multiprocessing
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch import nn
from torch.optim.lr_scheduler import ConstantLR
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.classic import WORKERS, Classic
from tools.publish import fill_section, split_at_marks
from utils.data import CIFAR10_CLASSES, CIFAR10_MEAN, CIFAR10_STD, ImageData, load_data, make_loaders
from utils.sessions import SESSIONS, Session
from utils.system.device import AUTOCAST_DTYPES, compile_where_it_pays, describe, fastest_precision, make_accelerator
from utils.system.files import write_text
from utils.system.progress import progress
from utils.training import test, train

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
START = {"DATA": "digits"} | os.environ  # environment of a session


class Ours:
    """The project's own train() and test()."""

    def __init__(self, session: Session, data: ImageData) -> None:
        self.recipe, self.accelerator = session.recipe, make_accelerator()
        device = self.accelerator.device
        loaders = make_loaders(data, self.recipe, device)
        model, optimizer = session.build(device)
        self.scheduler = ConstantLR(optimizer)  # the learning rate does not change the time
        self.model, self.optimizer, self.train_loader, self.test_loader = self.accelerator.prepare(
            model, optimizer, *loaders
        )
        if self.recipe.compile:  # as in a full run on CIFAR-10
            compile_where_it_pays(self.model, self.accelerator, steps=self.recipe.epochs * 98)

    def train(self) -> None:
        train(self.model, self.train_loader, self.optimizer, self.scheduler, self.accelerator, self.recipe, epoch=1)

    def test(self) -> None:
        test(self.model, self.test_loader, self.accelerator)


KINDS = (Classic, Ours)
pipeline: Classic | Ours


def random_images(count: int) -> ImageData:
    """``count`` training and as many test images of noise: their content does not change the time."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(10, (count,), generator=generator)
    return ImageData("noise", tuple(CIFAR10_CLASSES), images, labels, images, labels, CIFAR10_MEAN, CIFAR10_STD)


def seconds(work: Callable[[], object]) -> float:
    """The duration of ``work``, including the GPU's."""
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_flops(dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large matrix product, the peak of this machine."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    side = 8192 if device == "cuda" else 2048
    a = torch.randn(side, side, dtype=dtype, device=device)
    return 2 * side**3 / min(seconds(lambda: a @ a) for _ in range(10))


def flops(network: Callable[[], nn.Module]) -> int:
    """Floating-point operations per training image, forward and backward."""
    model = network()
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(2, 3, 32, 32)).sum().backward()
    return counter.get_total_flops() // 2


def compare(number: int, images: int, rounds: int) -> list[str]:
    """One row of the table: both pipelines in turn, in one warm-up round and ``rounds`` measured ones."""
    job = (number, images)
    times: dict[tuple[type, str], list[float]] = {(kind, name): [] for kind in KINDS for name in ("train", "test")}
    with contextlib.ExitStack() as stack:
        method, spawn = multiprocessing.get_start_method(), multiprocessing.get_context("spawn")
        pools: dict[type, ProcessPoolExecutor] = {
            kind: stack.enter_context(ProcessPoolExecutor(1, spawn, initializer=build, initargs=(kind, *job, method)))
            for kind in KINDS
        }
        for turn in progress(range(rounds + 1), desc=f"session {number}"):
            for kind, name in times:
                spent = pools[kind].submit(timed, name).result()
                if turn > 0:
                    times[kind, name].append(spent)
        memories = [pools[kind].submit(peak_memory).result() for kind in KINDS]
    cells = [str(number)]
    for name in ("train", "test"):
        classic, ours = (times[kind, name] for kind in KINDS)
        ratios = [a / b for a, b in zip(classic, ours)]
        cells += [f"{images / statistics.median(spent):,.0f}" for spent in (classic, ours)]
        cells.append(f"**{statistics.median(ratios):.2f}×** ({min(ratios):.2f} to {max(ratios):.2f})")
    for kind, precision in zip(KINDS, (torch.float32, AUTOCAST_DTYPES.get(fastest_precision(), torch.float32))):
        speed = flops(SESSIONS[number].network) * images / statistics.median(times[kind, "train"])
        cells.append(f"{100 * speed / peak_flops(precision):.0f}%")
    start = f"{first_batch(number):.1f}"
    return [*cells, *(f"{memory:.1f}" for memory in memories), start]


def build(kind: type, number: int, images: int, start_method: str) -> None:
    """Build the pipeline that this process times. Its workers use the default start method."""
    global pipeline
    multiprocessing.set_start_method(start_method, force=True)
    pipeline = kind(SESSIONS[number], random_images(images))


def timed(name: str) -> float:
    """Seconds of the pipeline's ``"train"`` or ``"test"``."""
    with contextlib.redirect_stdout(io.StringIO()):  # train() prints its line
        return seconds(getattr(pipeline, name))


def peak_memory() -> float:
    """Peak memory in GiB: the GPU's, or that of this process and its workers."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    own, worker = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    workers = WORKERS if isinstance(pipeline, Classic) else 0  # the compiler's processes have exited by then
    return (own + workers * worker) / 2**20  # ru_maxrss is in KiB on Linux; for children it is the largest one's


def first_batch(number: int) -> float:
    """Seconds from the start of a session's notebook to the first batch, which is the LR finder's."""
    shown = b""
    with tempfile.TemporaryDirectory() as runs:
        start = time.perf_counter()
        command = [sys.executable, "-m", "tools.execute", str(number)]
        run = subprocess.Popen(
            command, cwd=ROOT, env=START | {"RUNS": runs}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
        )
        assert run.stdout is not None
        while b"LR finder:" not in shown:
            piece = run.stdout.read(4096)
            if not piece:
                raise RuntimeError(f"session {number} ended before its first batch: {shown.decode()}")
            shown += piece
        spent = time.perf_counter() - start
        run.terminate()
        run.communicate()
    return spent


def table(rows: list[list[str]], hardware: str, data: str) -> str:
    heads = ["session", "training: classic", "ours", "ratio", "testing: classic", "ours", "ratio",
             "of peak: classic", "ours", "GiB: classic", "ours", "seconds to first batch"]  # fmt: skip
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(
        [
            f"{hardware}, PyTorch {torch.__version__}; the first batch is one of {data}",
            "",
            *("| " + " | ".join(line) + " |" for line in lines),
        ]
    )


def merge_tables(shown: str, result: str) -> str:
    """The tables that are ``shown``, one per machine, with this machine's replaced or added."""
    machine = result.partition(", PyTorch ")[0]
    others = [part for part in re.split(r"\n\n(?!\|)", shown.strip()) if part and not part.startswith(machine)]
    return "\n\n".join([*others, result])


def main() -> None:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sessions", type=int, nargs="*", choices=[*SESSIONS, []], help="default: all")
    parser.add_argument("--images", type=int, default=50_000 if gpu else 2048, help="per round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default: %(default)s)")
    parser.add_argument("--readme", action="store_true", help="also write the table into the README")
    arguments = parser.parse_args()
    data = load_data(START["DATA"]).name
    rows = [compare(number, arguments.images, arguments.rounds) for number in arguments.sessions or SESSIONS]
    result = table(rows, describe(make_accelerator()), data)
    print(result)
    if arguments.readme:
        text = README.read_text("utf-8")
        _, shown, _ = split_at_marks(text, "throughput")
        text = fill_section(text, "throughput", f"\n{merge_tables(shown, result)}\n")
        write_text(README, text)


if __name__ == "__main__":
    main()
