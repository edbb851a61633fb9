"""An interrupted run resumes and ends as if it had not been interrupted; other runs are kept."""

import csv
import errno
import importlib
import io
import itertools
import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from filelock import FileLock
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch.nn import functional
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from models.model9 import TransformerModel
from tests.small import (
    FEW_DIGITS,
    PROCESSES,
    RECIPE,
    SMALL,
    Cells,
    cells_of,
    interrupt_epoch,
)
from utils import device, plots, schedule, training
from utils.data import make_loaders, train_transform
from utils.errors import FileError
from utils.files import load_tensors
from utils.optimizers import adam
from utils.runs.folder import lock_folder
from utils.runs.report import list_runs
from utils.runs.run import Run
from utils.schedule import one_cycle
from utils.sessions import SESSIONS, train_session
from utils.training import MEASURES, History, TrainingStep
from utils.transforms import Compose, RandomCrop

MEASURED = [name for name in MEASURES if name != "seconds"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was not interrupted, and has finished."""
    cells = cells_of(tmp_path_factory.mktemp("whole") / "whole")
    cells.train()
    cells.run.finish()
    return cells


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of a run that was stopped in its second epoch."""
    cells = cells_of(tmp_path_factory.mktemp("stopped") / "stopped")
    stop_in_the_second_epoch(cells)
    return cells.run.folder.path


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def earlier(stopped, folder):
    """The folder of an unfinished run of an earlier kernel."""
    shutil.copytree(stopped, folder)
    return folder


def stop_in_the_second_epoch(cells: Cells) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_epoch(2, patch)
        cells.train()


def start(cells: Cells) -> None:
    """Run the training cell up to its first step."""
    if cells.scheduler is None:
        cells.make_schedule()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "fit", Mock(side_effect=KeyboardInterrupt))
        cells.fit()


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def folders_beside(folder: Path) -> set[str]:
    return {path.name for path in folder.parent.iterdir() if path.is_dir()}


def assert_same_weights(model: nn.Module, expected: nn.Module) -> None:
    """Bit for bit."""
    torch.testing.assert_close(model.state_dict(), expected.state_dict(), rtol=0, atol=0)


def test_a_run_computes_what_the_bare_functions_compute(whole):
    torch.manual_seed(RECIPE.seed)
    transform = train_transform(RECIPE, FEW_DIGITS)
    loaders = make_loaders(FEW_DIGITS, transform, batch_size=2, device=torch.device("cpu"))
    model = SMALL().to(memory_format=torch.channels_last)
    optimizer = adam(model, RECIPE.weight_decay)
    scheduler = one_cycle(optimizer, 0.01, RECIPE, steps_per_epoch=20)
    criterion = nn.CrossEntropyLoss()
    step = TrainingStep(model, criterion, optimizer, scheduler, "float32", RECIPE.max_grad_norm)
    history = History()
    training.fit(step, *loaders, RECIPE.epochs, history, after_epoch=len_of_log)
    assert_same_weights(model, whole.model)
    assert history.train_loss == whole.run.history.train_loss
    assert history.test_loss == whole.run.history.test_loss


def len_of_log(history: History) -> int:
    """What is done after an epoch matters to nobody."""
    return len(history.log)


def train_and_die(folder: Path, name: str, call: int) -> None:
    """Train until the given call of a function; a file is half written then."""
    module = os if name == "replace" else functional
    function = getattr(module, name)
    calls = itertools.count(1)

    def deadly(*arguments, **options):
        if next(calls) == call:
            if name == "replace":
                Path(arguments[0]).write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    setattr(module, name, deadly)
    cells_of(folder).train()


# plan.json and network.py are written first; then checkpoint, log and history after each epoch.
DEATHS = {
    "in a step": ("cross_entropy", 30, 1),  # an epoch has 20 steps and one test
    "while the checkpoint is saved": ("replace", 6, 1),
    "between the checkpoint and the log": ("replace", 7, 2),
    "before the weights": ("replace", 9, 2),
}


@pytest.mark.parametrize("name, call, epochs", DEATHS.values(), ids=DEATHS)
def test_killed_run_resumes(folder, whole, name, call, epochs):
    killed = PROCESSES.Process(target=train_and_die, args=(folder, name, call))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert len(load_tensors(folder / "checkpoint.pt")["history"]["lr"]) == epochs
    cells = cells_of(folder)
    torch.manual_seed(7)  # nothing may depend on the state of the new process
    cells.train()
    assert_same_weights(cells.model, whole.model)
    for measure in (*MEASURED, "step_lr"):
        assert getattr(cells.run.history, measure) == getattr(whole.run.history, measure)
    assert (folder / "training_log.txt").read_text("utf-8").splitlines() == cells.run.history.log
    assert len((folder / "history.csv").read_text("utf-8").splitlines()) == 3
    assert (folder / "weights.pt").exists()
    assert not list(folder.glob(".*.part"))


def test_log_of_a_resumed_run_is_complete(earlier, capsys):
    """On the screen and in the file; a progress bar overwrites itself."""
    cells = cells_of(earlier)
    cells.train()
    lines = [line.split("\r")[-1] for line in capsys.readouterr().out.split("\n")]
    visible = [line for line in lines if line.startswith(("EPOCH", "Test set"))]
    assert len(visible) == 4
    assert visible == cells.run.history.log
    assert (earlier / "training_log.txt").read_text("utf-8").splitlines() == visible


def test_log_is_complete_on_a_narrow_terminal(folder, whole, monkeypatch):
    def narrow(*_):
        return os.terminal_size((40, 20))

    monkeypatch.setattr(os, "get_terminal_size", narrow)
    cells = cells_of(folder)
    cells.train()
    logs = []
    for run in (cells.run, whole.run):
        logs.append([line.split("[")[0] for line in run.history.log])  # without the time
    assert logs[0] == logs[1]
    assert "100%|██████████| 20/20 " in logs[0][0]


def test_a_resumed_run_keeps_its_precision(folder, monkeypatch):
    """A run that started in bfloat16 stays in it, even on a CPU where float32 is faster."""
    recipe = RECIPE.replace(precision="auto")
    monkeypatch.setattr(device, "fast_precision", Mock(return_value="bfloat16"))
    stop_in_the_second_epoch(cells_of(folder, recipe))
    monkeypatch.setattr(device, "fast_precision", Mock(return_value="float32"))
    cells = cells_of(folder, recipe)
    dtypes = set()
    convolution = cells.model.conv_block[0]
    convolution.register_forward_hook(lambda module, inputs, output: dtypes.add(output.dtype))
    cells.train()
    assert dtypes == {torch.bfloat16}
    assert load_tensors(folder / "checkpoint.pt")["precision"] == "bfloat16"


# Each of these makes cells whose run is another one than that of ``cells_of(folder)``.


def other_network(folder: Path) -> Cells:
    return cells_of(folder, network=SmallTransformer)


class SmallTransformer(TransformerModel):
    def __init__(self):
        super().__init__(a=8)


def other_argument(folder: Path) -> Cells:
    return cells_of(folder, network=partial(TransformerModel, a=8, init="pytorch"))


def other_criterion(folder: Path) -> Cells:
    cells = cells_of(folder)
    cells.criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    return cells


def other_weight_decay(folder: Path) -> Cells:
    cells = cells_of(folder)
    cells.optimizer = adam(cells.model, weight_decay=0.01)
    return cells


def other_optimizer(folder: Path) -> Cells:
    cells = cells_of(folder)
    cells.optimizer = torch.optim.AdamW(cells.model.parameters())
    return cells


def other_max_lr(folder: Path) -> Cells:
    cells = cells_of(folder)
    cells.make_schedule(max_lr=0.02)
    return cells


def other_schedule(folder: Path) -> Cells:
    cells = cells_of(folder)
    cells.scheduler = CosineAnnealingLR(cells.optimizer, T_max=40)
    return cells


def other_crop(folder: Path) -> Cells:
    return cells_of(folder, RECIPE.replace(crop_padding=2))


def with_transform(folder: Path, transform) -> Cells:
    cells = cells_of(folder)
    cells.train_loader, _ = make_loaders(FEW_DIGITS, transform, 2, cells.run.device)
    return cells


def other_crop_of_the_same_recipe(folder: Path) -> Cells:
    return with_transform(folder, Compose([RandomCrop(32, padding=2), FEW_DIGITS.normalize]))


def own_transform(folder: Path) -> Cells:
    return with_transform(folder, scale)


def scale(images):
    return images / 255


def other_pixels(folder: Path) -> Cells:
    return cells_of(folder, data=replace(FEW_DIGITS, train_images=255 - FEW_DIGITS.train_images))


def other_epochs(folder: Path) -> Cells:
    return cells_of(folder, RECIPE.replace(epochs=3))


def other_seed(folder: Path) -> Cells:
    return cells_of(folder, RECIPE.replace(seed=1))


OTHER_RUNS = [
    (other_network, "network class (models.model9.TransformerModel, now "),
    (other_argument, "network arguments init (None, now pytorch)"),
    (other_criterion, "label_smoothing (0.0, now 0.1)"),
    (other_weight_decay, "optimizer group 0 weight_decay (0.0003, now 0.01)"),
    (other_optimizer, "optimizer class (Adam, now AdamW)"),
    (other_max_lr, "schedule max_lr ([0.01, 0.01], now [0.02, 0.02])"),
    (other_schedule, "class (OneCycleLR, now CosineAnnealingLR)"),
    (other_crop, "recipe crop_padding (1, now 2)"),
    (other_crop_of_the_same_recipe, "transform"),
    (own_transform, "transform"),
    (other_pixels, "digest has changed"),
    (other_epochs, "recipe epochs (2, now 3)"),
    (other_seed, "recipe seed (0, now 1)"),
]


def moved_line(output: str) -> str:
    """The one line about the run that was moved aside."""
    (line,) = [line for line in output.splitlines() if "was moved to" in line]
    return line


@pytest.mark.parametrize(
    "other, difference", OTHER_RUNS, ids=[other.__name__ for other, _ in OTHER_RUNS]
)
def test_another_run_is_moved_aside(earlier, capsys, other, difference):
    before = files_of(earlier)
    start(other(earlier))
    aside = earlier.with_name("run-2")
    assert files_of(aside) == before
    assert set(files_of(earlier)) == {"plan.json", "network.py"}
    line = moved_line(capsys.readouterr().out)
    assert line.startswith(f"The earlier run was moved to {aside}/: ")
    assert difference in line


def test_other_share_of_the_rise_is_another_run(folder, capsys):
    cells = cells_of(folder)
    cells.scheduler = OneCycleLR(cells.optimizer, 0.01, total_steps=40, pct_start=0.3)
    start(cells)
    cells = cells_of(folder)
    cells.scheduler = OneCycleLR(cells.optimizer, 0.01, total_steps=40, pct_start=0.5)
    start(cells)
    assert "schedule" in moved_line(capsys.readouterr().out)


def test_same_plan_is_resumed(earlier, capsys):
    start(cells_of(earlier))
    assert "moved" not in capsys.readouterr().out
    assert folders_beside(earlier) == {"run"}
    assert "checkpoint.pt" in files_of(earlier)


def test_finished_run_is_moved_aside(folder, whole, capsys):
    shutil.copytree(whole.run.folder.path, folder)
    start(cells_of(folder))
    assert "it is finished" in moved_line(capsys.readouterr().out)


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]"])
def test_run_without_a_plan_is_moved_aside(earlier, capsys, content):
    (earlier / "plan.json").unlink()
    if content is not None:
        (earlier / "plan.json").write_bytes(content)
    start(cells_of(earlier))
    assert "plan.json is missing or damaged" in moved_line(capsys.readouterr().out)


def test_several_runs_are_moved_aside_under_numbers(folder):
    for seed in (0, 1, 2):
        start(cells_of(folder, RECIPE.replace(seed=seed)))
    assert folders_beside(folder) == {"run", "run-2", "run-3"}
    seeds = []
    for name in ("run-2", "run-3", "run"):
        plan = json.loads((folder.with_name(name) / "plan.json").read_text())
        seeds.append(plan["recipe"]["seed"])
    assert seeds == [0, 1, 2]


def test_half_a_file_of_a_killed_process_is_removed(earlier):
    (earlier / ".checkpoint.pt.123.part").touch()
    start(cells_of(earlier))
    assert not list(earlier.glob(".*.part"))


OWN_NETWORK = '''
from models.model9 import TransformerModel


class Own(TransformerModel):
    """A network of one's own."""

    def __init__(self):
        super().__init__(a=8)

    def forward(self, images):
        return 2 * super().forward(images)
'''


@pytest.fixture
def in_a_new_kernel(tmp_path, monkeypatch, folder):
    """A function that starts the run of a source file in a new kernel."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path)

    def start_own(source: str) -> None:
        (tmp_path / "own_network.py").write_text(source)
        importlib.invalidate_caches()
        sys.modules.pop("own_network", None)
        start(cells_of(folder, network=importlib.import_module("own_network").Own))

    yield start_own
    sys.modules.pop("own_network", None)


def test_other_code_of_the_network_is_another_run(in_a_new_kernel, capsys):
    in_a_new_kernel(OWN_NETWORK)
    in_a_new_kernel(OWN_NETWORK.replace("2 *", "3 *"))
    assert moved_line(capsys.readouterr().out).endswith(": the network's code has changed.")


def test_code_that_trains_is_kept_in_the_folder(in_a_new_kernel, folder):
    in_a_new_kernel(OWN_NETWORK)
    source = (folder / "network.py").read_text("utf-8")
    assert "return 2 * super().forward(images)" in source
    assert "class UltimusBlock" in source


@pytest.mark.parametrize(
    "old, new",
    [
        ("A network of one's own.", "My network."),
        ("        return", "        # Twice.\n        return"),
        ("\n\n    def forward", "\n    def forward"),
    ],
    ids=["docstring", "comment", "layout"],
)
def test_same_code_is_the_same_run(in_a_new_kernel, folder, old, new):
    in_a_new_kernel(OWN_NETWORK)
    in_a_new_kernel(OWN_NETWORK.replace(old, new))
    assert folders_beside(folder) == {"run"}


def test_code_that_has_changed_after_build_is_said_to_train_as_it_was(
    in_a_new_kernel, folder, tmp_path, capsys
):
    """Also if the network is a function, and what has changed is the class that it calls."""
    in_a_new_kernel(OWN_NETWORK + "\n\ndef make():\n    return Own()\n")
    cells = cells_of(folder, network=sys.modules["own_network"].make)
    (tmp_path / "own_network.py").write_text(
        OWN_NETWORK.replace("2 *", "3 *") + "\n\ndef make():\n    return Own()\n"
    )
    capsys.readouterr()
    start(cells)
    assert "own_network.py has changed since it was imported" in capsys.readouterr().out
    assert "return 2 * super()" in (folder / "network.py").read_text("utf-8")


def look(cells: Cells) -> None:
    """The cells before the training: a picture and the LR finder."""
    cells.run.show(plots.sample_training_images, cells.train_loader, cells.run.data)
    cells.run.find_lr(cells.model, cells.optimizer, cells.train_loader)


def test_looking_changes_no_file_of_an_earlier_run(earlier):
    before = files_of(earlier)
    look(cells_of(earlier))
    assert files_of(earlier) == before
    assert folders_beside(earlier) == {"run"}


def test_pictures_from_before_the_training_belong_to_the_new_run(earlier):
    before = files_of(earlier)
    cells = cells_of(earlier, RECIPE.replace(seed=1))
    look(cells)
    start(cells)
    assert files_of(earlier.with_name("run-2")) == before
    assert {"sample_training_images.png", "lr_finder.json"} <= set(files_of(earlier))


def find_lr(cells: Cells):
    return cells.run.find_lr(cells.model, cells.optimizer, cells.train_loader)


@pytest.fixture
def searched(folder, monkeypatch):
    """The result of an LR search in ``folder``; another search fails the test."""
    cells = cells_of(folder)
    search = find_lr(cells)
    start(cells)
    monkeypatch.setattr(schedule, "find_lr", Mock(side_effect=LookupError("searched again")))
    return search


def test_lr_search_is_reused_in_a_new_kernel(folder, searched):
    assert find_lr(cells_of(folder)) == searched


def test_lr_search_is_reused_with_another_criterion_and_other_epochs(folder, searched):
    """It uses neither."""
    cells = other_epochs(folder)
    cells.criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    assert find_lr(cells) == searched


def test_reused_lr_search_is_in_the_folder_of_the_new_run(folder, searched):
    cells = other_epochs(folder)
    find_lr(cells)
    start(cells)
    assert "lr_finder.json" in files_of(folder)


@pytest.mark.parametrize(
    "other", [other_network, other_argument, other_weight_decay, other_pixels, own_transform]
)
def test_lr_is_searched_again_if_the_search_depends_on_the_change(folder, searched, other):
    with pytest.raises(LookupError, match="searched again"):
        find_lr(other(folder))


def test_damaged_lr_search_is_repeated(folder, searched):
    (folder / "lr_finder.json").write_text("{")
    with pytest.raises(LookupError, match="searched again"):
        find_lr(cells_of(folder))


def test_two_runs_side_by_side(tmp_path):
    for name in ("narrow", "wide"):
        start(cells_of(tmp_path / name))
    assert folders_beside(tmp_path / "narrow") == {"narrow", "wide"}
    assert "plan.json" in files_of(tmp_path / "narrow")
    assert "plan.json" in files_of(tmp_path / "wide")


def test_folder_in_use_by_another_process(folder):
    with FileLock(folder.with_name(".run.lock")):
        with pytest.raises(FileError, match="run is in use by another notebook or terminal"):
            cells_of(folder)
        assert not folder.exists()
    lock_folder(folder)


LOCAL = "set RUNS to a local folder"
OTHER_DISK = "free some space, or set RUNS to a folder on another disk"
WRITABLE = "set RUNS to a writable folder"

UNLOCKABLE = [
    (OSError(errno.ENOSYS, "Function not implemented"), LOCAL),
    (OSError(errno.ENOLCK, "No locks available"), LOCAL),
    (NotImplementedError("this file system has no locks"), LOCAL),
    (OSError(errno.ENOSPC, "No space left on device"), OTHER_DISK),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), OTHER_DISK),
    (OSError(errno.EROFS, "Read-only file system"), WRITABLE),
    (PermissionError(errno.EACCES, "Permission denied"), WRITABLE),
    (OSError(errno.ENAMETOOLONG, "File name too long"), "choose a shorter name of the run"),
]


@pytest.mark.parametrize("error, remedy", UNLOCKABLE, ids=[str(error) for error, _ in UNLOCKABLE])
def test_remedy_suits_the_reason_why_a_folder_cannot_be_locked(folder, monkeypatch, error, remedy):
    monkeypatch.setattr("utils.runs.folder.FileLock.acquire", Mock(side_effect=error))
    with pytest.raises(FileError) as caught:
        cells_of(folder)
    reason = error.strerror if isinstance(error, OSError) else str(error)
    assert f".run.lock cannot be locked ({reason}): {remedy}" in str(caught.value)


def test_folder_on_a_disk_that_is_full(folder, monkeypatch):
    cells = cells_of(folder)
    cells.make_schedule()
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(Path, "mkdir", Mock(side_effect=full))
    with pytest.raises(
        FileError, match=rf"run cannot be created \(No space left.*\): {OTHER_DISK}"
    ):
        cells.fit()


def test_folder_whose_parent_cannot_be_created(tmp_path):
    (tmp_path / "runs").write_text("a file stands where the folder should")
    with pytest.raises(FileError, match="set RUNS to a writable folder"):
        cells_of(tmp_path / "runs/run")


def test_folder_that_cannot_be_created(folder):
    cells = cells_of(folder)
    folder.write_text("a file stands where the folder should")
    cells.make_schedule()
    with pytest.raises(FileError, match=r"run cannot be created \(File exists\): set RUNS"):
        cells.fit()


def test_folder_that_cannot_be_moved_aside(earlier, monkeypatch):
    cells = other_seed(earlier)
    cells.make_schedule()
    monkeypatch.setattr(Path, "rename", Mock(side_effect=PermissionError(13, "Permission denied")))
    with pytest.raises(FileError, match=r"cannot be renamed \(Permission denied\): move it away"):
        cells.fit()


def test_list_of_runs(tmp_path, whole, stopped):
    shutil.copytree(whole.run.folder.path, tmp_path / "whole")
    shutil.copytree(stopped, tmp_path / "stopped")
    (tmp_path / "no run").mkdir()
    os.utime(tmp_path / "whole/plan.json", (1, 1))  # the older one
    accuracies = []
    for history in (tmp_path / "whole/history.csv", tmp_path / "stopped/history.csv"):
        rows = list(csv.DictReader(io.StringIO(history.read_text("utf-8"))))
        accuracies.append(f"{float(rows[-1]['test_accuracy']):.2f}%")
    heads, first, second = (line.split() for line in list_runs(tmp_path).splitlines())
    assert heads == ["name", "date", "network", "epochs", "max", "LR", "accuracy", "finished"]
    name, _, _, *values = first
    assert name == "whole"
    assert values == ["TransformerModel(a=8)", "2", "of", "2", "0.0100", accuracies[0], "yes"]
    name, _, _, *values = second
    assert name == "stopped"
    assert values == ["TransformerModel", "1", "of", "2", "0.0100", accuracies[1], "no"]


def test_notebook_and_terminal_have_the_same_plan(tmp_path, full, monkeypatch):
    """So one resumes what the other has started."""
    start(cells_of(tmp_path / "notebook", network=TransformerModel))
    monkeypatch.setenv("RUNS", str(tmp_path))
    run = Run.open("terminal", RECIPE, FEW_DIGITS, cpu=True)
    monkeypatch.setattr(training, "fit", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train_session(SESSIONS[9], run, max_lr=0.01)
    plans = []
    for name in ("notebook", "terminal"):
        plans.append(json.loads((tmp_path / name / "plan.json").read_text()))
    assert plans[0] == plans[1]


@pytest.fixture
def compilations(monkeypatch):
    """The arguments with which a run asks whether compiling pays."""
    ask = Mock()
    monkeypatch.setattr("utils.runs.run.compile_where_it_pays", ask)
    return ask


def test_long_run_asks_whether_compiling_pays(folder, compilations):
    cells = cells_of(folder, RECIPE.replace(epochs=50, compile=True))
    start(cells)
    compilations.assert_called_once_with(cells.model, cells.run.device, steps=1000)


def test_recipe_without_compiling_asks_nothing(folder, compilations):
    start(cells_of(folder, RECIPE.replace(epochs=50, compile=False)))
    compilations.assert_not_called()


def fail(graph, inputs):
    raise RuntimeError("there is no compiler")


def as_it_is(graph, inputs):
    return graph


def fail_when_compiling_again():
    """A backend that works for the first graph only."""
    backends = iter([as_it_is])

    def backend(graph, inputs):
        return next(backends, fail)(graph, inputs)

    return backend


BACKENDS = {
    "forward pass": fail,
    "backward pass": aot_autograd(fw_compiler=as_it_is, bw_compiler=fail),
    "second graph": fail_when_compiling_again(),
}


@pytest.fixture
def compile_with(monkeypatch):
    """A function that chooses with what a run compiles its network."""

    def choose(backend) -> None:
        def compile_network(model, device, steps):
            model.compile(backend=backend)

        monkeypatch.setattr("utils.runs.run.compile_where_it_pays", compile_network)

    torch.compiler.reset()
    yield choose
    torch.compiler.set_stance("default")
    torch.compiler.reset()


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
def test_compiler_that_fails_costs_one_line_and_changes_nothing(
    folder, whole, capsys, compile_with, backend
):
    compile_with(backend)
    cells = cells_of(folder, RECIPE.replace(compile=True))
    cells.train()
    assert capsys.readouterr().out.count("torch.compile does not work here") == 1
    weights = cells.model.state_dict()
    torch.testing.assert_close(weights, whole.model.state_dict(), rtol=0, atol=0)


class Wrong(nn.Linear):
    """A network with a fault of its own."""

    def forward(self, images):
        return images.view(3)


def test_error_of_the_network_is_raised_as_it_is(folder, compile_with):
    compile_with(as_it_is)
    cells = cells_of(folder, RECIPE.replace(compile=True), network=partial(Wrong, 1, 1))
    with pytest.raises(RuntimeError, match="shape"):
        cells.train()
