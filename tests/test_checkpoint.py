"""Weights and checkpoints: complete or absent.

Damaged, foreign and malicious files give one line and stay as they are.
"""

import os
import pickle
import resource
from collections import Counter, namedtuple
from collections.abc import Callable
from decimal import Decimal
from enum import Enum, IntEnum
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from models.model8 import CustomResNet
from models.model9 import TransformerModel
from tests.small import DIGITS, RECIPE, SMALL, cells_of, interrupt_epoch, save_weights
from utils.classify import Classifier
from utils.errors import FileError
from utils.files import as_bytes, load_tensors, replace_file
from utils.runs.checkpoint import restore_checkpoint, save_checkpoint
from utils.training import History, TrainingStep


class Evil:
    """Runs code when a careless program unpickles it."""

    def __reduce__(self):
        return os.mkdir, ("hacked",)


def cut_off(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def malicious(path: Path) -> None:
    torch.save({"model": Evil()}, path)


def malicious_in_the_old_form(path: Path) -> None:
    path.write_bytes(pickle.dumps(Evil()))


def a_list(path: Path) -> None:
    torch.save([1, 2], path)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def of_no_session(path: Path) -> None:
    path.write_bytes(as_bytes({"session": 5, "model": {}}))


def without_a_network(path: Path) -> None:
    path.write_bytes(as_bytes({"session": 9}))


def of_another_session(path: Path) -> None:
    content = load_tensors(path)
    del content["network"]  # as in published files
    path.write_bytes(as_bytes(content | {"session": 8}))


def absent(path: Path) -> None:
    path.unlink()


TRUNCATED = "is damaged or truncated: download it again, or move it away and train again"
NO_WEIGHTS = "is not a weights file: give the weights.pt of a run"
OTHER_WEIGHTS = "does not hold weights of this network: give the weights.pt of a finished run"
RUNS_CODE = "contains objects that could run code, such as a whole model, so it was not loaded"

DAMAGES = [
    (cut_off, TRUNCATED),
    (malicious, RUNS_CODE),
    (malicious_in_the_old_form, "is a pickle, which could run code, so it was not loaded"),
    (a_list, NO_WEIGHTS),
    (a_folder, "cannot be read (Is a directory): give the weights.pt"),
    (of_no_session, "names no network, as a bare state_dict does not: give the weights.pt"),
    (without_a_network, OTHER_WEIGHTS),
    (of_another_session, OTHER_WEIGHTS),
    (absent, "cannot be read (No such file or directory): give the weights.pt"),
]
NAMES = [damage.__name__ for damage, _ in DAMAGES]


@pytest.mark.parametrize("damage, message", DAMAGES, ids=NAMES)
def test_damaged_weights_give_one_line(tmp_path, monkeypatch, damage, message):
    path = tmp_path / "weights.pt"
    save_weights(path, SMALL, DIGITS)
    damage(path)
    monkeypatch.chdir(tmp_path)  # where Evil would create its folder
    with pytest.raises(FileError) as caught:
        Classifier(path)
    line = str(caught.value)
    assert line.startswith(f"{path} {message}")
    assert "\n" not in line
    assert not (tmp_path / "hacked").exists()


def a_step(scale: float) -> TrainingStep:
    """A step in float16; a GradScaler on the CPU stands in for the GPU's."""
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters())
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    step = TrainingStep(model, torch.nn.MSELoss(), optimizer, scheduler, "float16")
    step.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return step


@pytest.fixture
def run_folder(tmp_path):
    """The folder of a run that has not started."""
    return cells_of(tmp_path / "run").run.folder


def save_and_restore(folder, saved: TrainingStep, restored: TrainingStep) -> History:
    save_checkpoint(folder, saved, History(), {"model": saved.model.state_dict()})
    content = load_tensors(folder.path / "checkpoint.pt")
    return restore_checkpoint(content, restored, folder)


def test_scale_of_float16_is_restored(run_folder):
    restored = a_step(scale=2.0)
    save_and_restore(run_folder, a_step(scale=1024.0), restored)
    assert restored.scaler.get_scale() == 1024


def test_scale_is_not_restored_in_another_precision(run_folder):
    """A run may resume on a device that cannot compute in its precision."""
    restored = a_step(scale=2.0)
    restored.precision = "bfloat16"
    save_and_restore(run_folder, a_step(scale=1024.0), restored)
    assert restored.scaler.get_scale() == 2


@pytest.mark.parametrize("optimizer", [torch.optim.RMSprop, torch.optim.NAdam, torch.optim.Adagrad])
def test_optimizers_without_a_fused_form_are_restored(run_folder, optimizer):
    """PyTorch's optimizers do not all have the same settings."""
    steps = []
    for _ in range(2):
        step = a_step(scale=2.0)
        step.optimizer = optimizer(step.model.parameters(), lr=0.1)
        steps.append(step)
    saved, restored = steps
    saved.optimizer.param_groups[0]["lr"] = 0.3
    save_and_restore(run_folder, saved, restored)
    assert restored.optimizer.param_groups[0]["lr"] == 0.3


class Half(float):
    """A number of somebody's own."""


class Mode(Enum):
    FAST = "fast"


class Level(IntEnum):
    HIGH = 3


Pair = namedtuple("Pair", "first second")

# Values as users have them, and what a file holds of them.
SAVED = [
    (np.float64(0.5), 0.5),
    (np.float32(0.25), 0.25),
    (np.longdouble(0.5), 0.5),
    (np.int64(3), 3),
    (np.bool_(True), True),
    (np.array(0.5), 0.5),
    (np.array([1, 2]), [1, 2]),
    (np.str_("name"), "name"),
    (Fraction(1, 4), 0.25),
    (Decimal("0.5"), 0.5),
    (Half(0.5), 0.5),
    (Level.HIGH, 3),
    (Mode.FAST, "fast"),
    (Path("images"), "images"),
    (Pair(1, np.int64(2)), (1, 2)),
    (range(3), [0, 1, 2]),
    (frozenset([1]), {1}),
    (Counter([30, 60]), Counter([30, 60])),  # the milestones of MultiStepLR
    ([np.int64(3), {"deep": np.float64(0.5)}], [3, {"deep": 0.5}]),
    ({np.str_("name"): Fraction(1, 4)}, {"name": 0.25}),
]


@pytest.mark.parametrize("value, expected", SAVED, ids=[repr(value) for value, _ in SAVED])
def test_values_are_saved_so_that_they_can_be_read(tmp_path, value, expected):
    """PyTorch would take the objects for code, and refuse to read them."""
    path = tmp_path / "content.pt"
    path.write_bytes(as_bytes({"value": value}))
    saved = load_tensors(path)["value"]
    assert saved == expected
    assert type(saved) is type(expected)


def test_tensors_of_one_number_stay_tensors(tmp_path):
    path = tmp_path / "content.pt"
    path.write_bytes(as_bytes({"lr": torch.tensor(0.5)}))
    assert torch.equal(load_tensors(path)["lr"], torch.tensor(0.5))


def test_object_that_could_not_be_read_again_is_not_saved():
    with pytest.raises(FileError, match=r"^scheduler owner is a Evil, which a file of weights can"):
        as_bytes({"scheduler": {"rates": [0.5], "owner": Evil()}})


class OwnSchedule(torch.optim.lr_scheduler.LRScheduler):
    """It holds a function and a class, as many do."""

    def __init__(self, optimizer: torch.optim.Optimizer, half: Callable[[float], float]) -> None:
        self.half = half
        self.kind = Half
        super().__init__(optimizer)

    def get_lr(self):
        return [self.half(group["lr"]) for group in self.optimizer.param_groups]


def test_schedule_that_holds_functions_is_restored(run_folder):
    steps = []
    for _ in range(2):
        step = a_step(scale=2.0)
        step.scheduler = OwnSchedule(step.optimizer, half=lambda lr: lr / 2)
        steps.append(step)
    saved, restored = steps
    saved.optimizer.step()
    saved.scheduler.step()
    save_and_restore(run_folder, saved, restored)
    assert restored.scheduler.last_epoch == 1
    assert restored.scheduler.get_last_lr() == saved.scheduler.get_last_lr()
    restored.scheduler.step()
    assert restored.scheduler.get_last_lr() == [saved.scheduler.get_last_lr()[0] / 2]


def test_milestones_are_restored_with_their_counts(run_folder):
    steps = []
    for _ in range(2):
        step = a_step(scale=2.0)
        step.scheduler = torch.optim.lr_scheduler.MultiStepLR(step.optimizer, [1, 2])
        steps.append(step)
    save_and_restore(run_folder, *steps)
    assert steps[1].scheduler.milestones == Counter([1, 2])
    assert isinstance(steps[1].scheduler.milestones, Counter)


def test_full_disk_keeps_what_stood_there(tmp_path):
    """The operating system rejects files larger than 100 kB, as a full disk would."""
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(b"before")
    content = as_bytes({"epoch": torch.ones(1_000_000)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(FileError, match=r"cannot be written \(File too large\): free some"):
            replace_file(path, lambda part: part.write_bytes(content))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def of_another_network(path: Path) -> None:
    content = load_tensors(path) | {"model": CustomResNet().state_dict()}
    path.write_bytes(as_bytes(content))


def of_another_optimizer(path: Path) -> None:
    content = load_tensors(path)
    content["optimizer"]["param_groups"].pop()
    path.write_bytes(as_bytes(content))


def without_its_history(path: Path) -> None:
    content = load_tensors(path)
    del content["history"]
    path.write_bytes(as_bytes(content))


BY_ANOTHER_RUN = "was saved by another run: move it away to train from the start"

DAMAGED_CHECKPOINTS = [
    (cut_off, TRUNCATED),
    (malicious, RUNS_CODE),
    (of_another_network, BY_ANOTHER_RUN),
    (of_another_optimizer, BY_ANOTHER_RUN),
    (without_its_history, BY_ANOTHER_RUN),
]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> dict[str, bytes]:
    """The files of a run that was stopped in its second epoch."""
    cells = cells_of(tmp_path_factory.mktemp("stopped") / "run", RECIPE)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_epoch(2, patch)
        cells.train()
    return {path.name: path.read_bytes() for path in cells.run.folder.path.iterdir()}


@pytest.mark.parametrize(
    "damage, message",
    DAMAGED_CHECKPOINTS,
    ids=[damage.__name__ for damage, _ in DAMAGED_CHECKPOINTS],
)
def test_damaged_checkpoint_stops_the_run_and_stays(
    tmp_path, stopped, damage: Callable[[Path], None], message: str
):
    folder = tmp_path / "run"
    folder.mkdir()
    for name, content in stopped.items():
        (folder / name).write_bytes(content)
    checkpoint = folder / "checkpoint.pt"
    damage(checkpoint)
    before = checkpoint.read_bytes()
    with pytest.raises(FileError) as caught:
        cells_of(folder, RECIPE).train()
    assert f"{checkpoint} {message}" in str(caught.value)
    assert checkpoint.read_bytes() == before


def test_checkpoint_serves_as_weights(tmp_path, stopped):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(stopped["checkpoint.pt"])
    assert isinstance(Classifier(path).model, TransformerModel)
