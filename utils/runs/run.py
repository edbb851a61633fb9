"""A run: one training, with its device, its folder, its checkpoints and its pictures."""

import copy
import io
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils.data import DataLoader

from utils import plots, schedule, training
from utils.data import ImageData
from utils.device import (
    choose_device,
    choose_precision,
    compile_where_it_pays,
    hardware_of,
    is_of_the_compiler,
    memory_format,
    random_state,
    set_random_state,
    stop_compiling,
)
from utils.errors import TrainingError
from utils.files import as_bytes
from utils.optimizers import group_settings, restore_group_settings
from utils.recipes import Recipe
from utils.runs import report
from utils.runs.checkpoint import (
    load_checkpoint,
    network_content,
    restore_checkpoint,
    save_checkpoint,
    write_history,
)
from utils.runs.folder import RunFolder
from utils.runs.plan import NetworkInfo, as_json_reads, plan_of_search, plan_of_training
from utils.schedule import LRSearch
from utils.settings import run_folder, smoke
from utils.source import source_pieces
from utils.training import History, TrainingStep

SMOKE_EPOCHS = 2
SMOKE_SEARCH_STEPS = 24


class Run:
    """One training run: open, build, find_lr, fit, show, finish and submission, in this order.

    What it trains is made outside: network, criterion, optimizer, schedule and loaders are
    PyTorch's objects. The run adds the device, a folder for all files, and resuming after the last
    complete epoch. Any cell may run again: ``fit`` starts from the last checkpoint or from the
    network as ``build`` made it, never from weights that an interruption left.
    """

    def __init__(
        self, name: str, recipe: Recipe, data: ImageData, device: torch.device, folder: RunFolder
    ) -> None:
        self.name = name
        self.recipe = recipe
        self.data = data
        self.device = device
        self.folder = folder
        self.precision = choose_precision(recipe.precision, None, device)
        self.compiles = recipe.compile
        self.model: nn.Module | None = None
        self.search: LRSearch | None = None
        self.search_json: bytes | None = None
        self.history = History()
        self.optimizers_at_start: WeakKeyDictionary[Optimizer, tuple] = WeakKeyDictionary()
        self.schedules_at_start: WeakKeyDictionary[LRScheduler, tuple] = WeakKeyDictionary()
        self.test_loader: DataLoader | None = None
        self.known_predictions: tuple[Tensor, Tensor] | None = None

    @classmethod
    def open(cls, name: str, recipe: Recipe, data: ImageData, cpu: bool = False) -> "Run":
        """Choose the device, adapt the recipe to the number of images, and lock the run's folder.

        No file of an earlier run is moved or changed. Raises FileError: another process uses the
        folder.
        """
        recipe = recipe.for_images(len(data.train_labels))
        if smoke():
            recipe = recipe.replace(epochs=min(recipe.epochs, SMOKE_EPOCHS))
        folder = RunFolder(run_folder(name), temporary=smoke())
        return cls(name, recipe, data, choose_device(cpu), folder)

    def __str__(self) -> str:
        return f"{hardware_of(self.device, self.precision)}\n{self.data}"

    def build(self, network: Callable[[], nn.Module]) -> nn.Module:
        """Make the network on the device, from the recipe's seed.

        ``network`` is a class or function without arguments, such as ``TransformerModel`` or
        ``partial(TransformerModel, a=8)``. TrainingError: its file has changed since its import.
        """
        self.network = NetworkInfo.of(network)
        self.network_function = network
        torch.manual_seed(self.recipe.seed)
        model = network().to(self.device).to(memory_format=memory_format(self.device))
        self.model = model
        self.weights_at_start = copy.deepcopy(model.state_dict())
        self.random_at_start = random_state(self.device)
        self.folder.hold_back()
        self.search = None
        self.search_json = None
        self.forget_results()
        return model

    def forget_results(self) -> None:
        """Forget what an earlier training measured: it is not of the weights as they are now."""
        self.history = History()
        self.known_predictions = None

    def find_lr(self, model: nn.Module, optimizer: Optimizer, train_loader: DataLoader) -> LRSearch:
        """Run the LR range test on the new network, or read its result if the run resumes."""
        self.check_network(model)
        self.check_optimizer(optimizer)
        self.remember_start(optimizer)
        plan = as_json_reads(
            plan_of_search(self.network, optimizer, self.recipe, self.data, train_loader)
        )
        self.search = self.read_search(plan)
        if self.search is None:
            self.rewind(optimizer)
            steps = SMOKE_SEARCH_STEPS if smoke() else schedule.SEARCH_STEPS
            self.search = schedule.find_lr(model, optimizer, train_loader, self.precision, steps)
            self.forget_results()
        content = {"plan": plan, "search": asdict(self.search)}
        self.search_json = json.dumps(content).encode()
        self.folder.write("lr_finder.json", self.search_json)
        return self.search

    def read_search(self, plan: dict) -> LRSearch | None:
        """The saved result of an LR range test with this plan; None if there is none."""
        saved = self.folder.read_json("lr_finder.json")
        if saved is None or saved.get("plan") != plan:
            return None
        try:
            return LRSearch(**saved["search"])
        except (KeyError, TypeError):
            return None

    def fit(
        self,
        model: nn.Module,
        criterion: Callable[[Tensor, Tensor], Tensor],
        optimizer: Optimizer,
        scheduler: LRScheduler,
        train_loader: DataLoader,
        test_loader: DataLoader,
    ) -> History:
        """Train; after each epoch the folder holds the log, the history and a checkpoint.

        An unfinished run with the same plan resumes: on the same machine, it ends exactly as if it
        had never been interrupted. Any other run in the folder is moved aside, with a line that
        says what differs.
        """
        self.check_network(model)
        self.check_optimizer(optimizer)
        self.check_schedule(scheduler, optimizer, steps=self.recipe.epochs * len(train_loader))
        self.remember_start(optimizer)
        self.say_if_the_network_has_changed()
        self.rewind(optimizer, scheduler)
        self.forget_results()
        self.test_loader = test_loader
        search_plan = plan_of_search(self.network, optimizer, self.recipe, self.data, train_loader)
        self.folder.start(plan_of_training(search_plan, criterion, scheduler, self.recipe))
        saved = load_checkpoint(self.folder)
        saved_precision = saved.get("precision") if saved else None
        self.precision = choose_precision(self.recipe.precision, saved_precision, self.device)
        step = TrainingStep(
            model, criterion, optimizer, scheduler, self.precision, self.recipe.max_grad_norm
        )
        try:
            # Until this returns, there is no history, so that no picture shows a network that is
            # trained by half.
            self.history = self.train_from(saved, step, train_loader, test_loader)
        except Exception as error:
            if not (self.compiles and is_of_the_compiler(error)):
                raise
            self.compiles = False
            stop_compiling()
            # Once more, from the last complete epoch.
            return self.fit(model, criterion, optimizer, scheduler, train_loader, test_loader)
        finally:
            # Undo what the schedule has written into the optimizer: another one may come.
            _, settings = self.optimizers_at_start[optimizer]
            restore_group_settings(optimizer, copy.deepcopy(settings))
        return self.history

    def train_from(
        self,
        saved: dict | None,
        step: TrainingStep,
        train_loader: DataLoader,
        test_loader: DataLoader,
    ) -> History:
        """Train from the checkpoint ``saved``, or from the start; save the trained weights."""
        recipe = self.recipe
        self.folder.write("network.py", self.network.source.encode())
        if self.search_json is not None:  # if a run was moved aside, its file went with it
            self.folder.write("lr_finder.json", self.search_json)
        print(
            f"{self.network.title} on {self.data.name}, {recipe.epochs} epochs, "
            f"seed {recipe.seed}, {hardware_of(self.device, self.precision)}",
            flush=True,
        )
        if self.compiles:
            compile_where_it_pays(step.model, self.device, steps=recipe.epochs * len(train_loader))
        history = History()
        if saved:
            history = restore_checkpoint(saved, step, self.folder)
            write_history(self.folder, history)  # a kill may have come before the log was written
            print(f"Resuming after epoch {history.epochs}:", *history.log, sep="\n", flush=True)

        def save(history: History) -> None:
            save_checkpoint(self.folder, step, history, self.content(step.model))

        training.fit(step, train_loader, test_loader, recipe.epochs, history, after_epoch=save)
        self.folder.write("weights.pt", as_bytes(self.content(step.model)))
        return history

    def content(self, model: nn.Module) -> dict:
        """What weights.pt holds of ``model``."""
        return network_content(model, self.network, self.recipe, self.data)

    def check_network(self, model: nn.Module) -> None:
        """Raise TrainingError unless ``build`` has made ``model``."""
        if self.model is None or model is not self.model:
            raise TrainingError(
                "this network is not the one that run.build made: "
                "run the cell with run.build and the cells after it."
            )

    def check_optimizer(self, optimizer: Optimizer) -> None:
        """Raise TrainingError unless ``optimizer`` updates weights of the network."""
        if isinstance(optimizer, LBFGS):
            raise TrainingError("LBFGS needs several passes a step: use another optimizer.")
        assert self.model is not None
        weights = {id(parameter) for parameter in self.model.parameters()}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if id(parameter) not in weights:
                    raise TrainingError(
                        "the optimizer holds the weights of another network: "
                        "run the cell that makes it, and the cells after it."
                    )

    def check_schedule(self, scheduler: LRScheduler, optimizer: Optimizer, steps: int) -> None:
        """Raise TrainingError unless ``scheduler`` can be stepped ``steps`` times."""
        if isinstance(scheduler, ReduceLROnPlateau):
            raise TrainingError(
                "ReduceLROnPlateau is stepped after an epoch, with its loss, but this loop steps "
                "the schedule after every batch: use another one."
            )
        if scheduler.optimizer is not optimizer:
            raise TrainingError(
                "the schedule belongs to another optimizer: run the cell that makes it again."
            )
        total = getattr(scheduler, "total_steps", steps)
        if total < steps:
            raise TrainingError(
                f"the schedule has {total} steps, but {self.recipe.epochs} epochs have {steps}: "
                "make it for recipe.epochs × len(train_loader) steps."
            )

    def say_if_the_network_has_changed(self) -> None:
        """Print a line if the network's file has changed since ``build``."""
        try:
            source_pieces(self.network_function)
        except TrainingError as error:
            print(f"{error} This run trains the network as it was built.", flush=True)

    def remember_start(self, optimizer: Optimizer) -> None:
        """Keep the state and the settings of an optimizer as they are when it is first used."""
        if optimizer not in self.optimizers_at_start:
            start = (optimizer.state_dict()["state"], group_settings(optimizer))
            self.optimizers_at_start[optimizer] = copy.deepcopy(start)

    def rewind(self, optimizer: Optimizer, scheduler: LRScheduler | None = None) -> None:
        """Put network, optimizer, schedule and random state back to where the training starts."""
        assert self.model is not None
        self.model.load_state_dict(self.weights_at_start)
        set_random_state(self.random_at_start, self.device)
        state, _ = self.optimizers_at_start[optimizer]
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": copy.deepcopy(state), "param_groups": groups})
        optimizer.zero_grad()
        if scheduler is not None:
            self.rewind_schedule(scheduler)

    def rewind_schedule(self, scheduler: LRScheduler) -> None:
        """Put a schedule, and the learning rates of its optimizer, back to its first step."""
        optimizer = scheduler.optimizer
        if scheduler not in self.schedules_at_start:
            start = (scheduler.state_dict(), group_settings(optimizer))
            self.schedules_at_start[scheduler] = copy.deepcopy(start)
            return
        state, settings = copy.deepcopy(self.schedules_at_start[scheduler])
        scheduler.load_state_dict(state)
        restore_group_settings(optimizer, settings)

    @property
    def predictions(self) -> tuple[Tensor, Tensor]:
        """Logits ``(N, 10)`` and labels ``(N,)`` of the test images, by the trained network."""
        self.check_trained()
        if self.known_predictions is None:
            assert self.model is not None
            assert self.test_loader is not None
            self.known_predictions = training.predict(self.model, self.test_loader, self.precision)
        return self.known_predictions

    def check_trained(self) -> None:
        """Raise TrainingError unless ``fit`` has trained the network to the last epoch."""
        if self.history.epochs < self.recipe.epochs:
            raise TrainingError(
                "the network is not trained to the end: call fit first, which also resumes."
            )

    def show(self, picture: Callable[..., Figure], *content: object) -> None:
        """Draw and save a picture of ``utils.plots`` and display it in a notebook.

        ``content`` is what the picture shows. A picture that cannot be drawn costs one line.
        """
        name = picture.__name__
        try:
            with plots.style():
                png = as_png(picture(*content))
        except Exception as error:
            if smoke():  # tests must see it
                raise
            reason = str(error).partition("\n")[0]
            print(
                f"The picture {name} cannot be drawn ({type(error).__name__}: {reason}).",
                flush=True,
            )
            return
        self.folder.write(f"{name}.png", png)
        if "ipykernel" in sys.modules:
            from IPython.display import Image, display

            display(Image(png))

    def finish(self) -> None:
        """Write ``run.json``, which marks the run as finished, and print the results.

        Raises TrainingError: the network is not trained to the end.
        """
        self.check_trained()
        assert self.model is not None
        facts = report.results(
            self.recipe,
            self.data,
            self.history,
            self.network,
            self.model,
            hardware_of(self.device, self.precision),
            self.precision,
        )
        self.folder.write("run.json", (json.dumps(facts, indent=2) + "\n").encode())
        self.folder.finished_here = True
        print(report.summary(facts), flush=True)

    def submission(self, address: str = "") -> str:
        """Write ``submission.md``, what the assignment page asks for; returns a line about it.

        ``address`` is that of the repository; by default, and if it is a placeholder, git's.
        Raises TrainingError: the run is not finished.
        """
        facts = self.folder.read_json("run.json")
        if facts is None or self.history.epochs < self.recipe.epochs:
            raise TrainingError("there is no finished run to hand in: call run.finish() first.")
        if "OWNER/NAME" in address:
            address = ""
        log = (self.folder.path / "training_log.txt").read_text("utf-8")
        source = (self.folder.path / "network.py").read_text("utf-8")
        text = report.submission_text(facts, address, source, log)
        self.folder.write("submission.md", text.encode())
        line = f"{self.folder.path}/submission.md answers the assignment page, point by point."
        first_line, _, _ = text.partition("\n")
        is_warning = first_line.startswith("**")
        return f"{first_line}\n{line}" if is_warning else line

    def download(self) -> None:
        """Say where the results are; on Colab, offer them as one file, before they are deleted."""
        if "google.colab" not in sys.modules:
            print(f"Log, weights, pictures and submission.md: {self.folder.path}/", flush=True)
            return
        from google.colab import files  # type: ignore[import-not-found]

        archive = shutil.make_archive(self.name, "zip", self.folder.path)
        print(f"Downloading {Path(archive).name}: Colab deletes this machine later.", flush=True)
        files.download(archive)


def as_png(figure: Figure) -> bytes:
    """The picture as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
