"""A run: one training of a session, with its device, its folder, its checkpoint and its pictures."""

import json
import statistics
import sys
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from utils import plots
from utils.data import ImageData, make_loaders
from utils.recipes import Recipe
from utils.runs.checkpoint import TrainingState, save_weights, write_history
from utils.runs.folder import is_unfinished, open_folder
from utils.runs.submission import repository, summary, write_submission
from utils.schedule import SEARCH_STEPS, LRSearch, find_lr, one_cycle
from utils.sessions import Session
from utils.system.cpu import compile_where_it_pays
from utils.system.device import hardware_of, make_accelerator, precision_of
from utils.system.errors import FileError, TrainingError
from utils.system.files import load_tensors, write_text
from utils.system.settings import run_folder, smoke
from utils.training import MEASURES, History, fit, flip_averaged_accuracy, predict

SMOKE_EPOCHS, SMOKE_SEARCH_STEPS = 2, 24


@dataclass
class Run:
    """One training run of a session: open, build, find_lr, fit and finish, in this order.

    All files are written to ``folder``. An interrupted run resumes after its last complete epoch. With
    several processes, all of them train and the first one writes.
    """

    session: Session  # its recipe is the one that this run trains with
    data: ImageData
    accelerator: Accelerator
    folder: Path
    loaders: tuple[DataLoader, DataLoader]  # training and test batches, on the device
    model: nn.Module = field(init=False)
    optimizer: Optimizer = field(init=False)
    search: LRSearch | None = field(default=None, init=False)
    max_lr: float = field(init=False)
    history: History = field(default_factory=History, init=False)

    @classmethod
    def open(
        cls,
        session: Session,
        data: ImageData,
        max_lr: float | None = None,  # None: the LR finder will choose it
        *,
        name: str | None = None,  # of the folder; default: the session's
        cpu: bool = False,
        tensorboard: bool = False,
        epochs: int | None = None,  # default: the recipe's, and 2 in smoke mode
        **changes,  # other fields of the recipe, for example seed=1
    ) -> "Run":
        """Choose the device, adapt the recipe to the data and open the run's folder.

        Raises:
            TrainingError: a setting is out of its range.
            FileError: the folder is in use or not writable, or its checkpoint is damaged.
        """
        recipe = session.recipe.for_images(len(data.train_labels))
        default = SMOKE_EPOCHS if smoke() else recipe.epochs
        recipe = replace(recipe.for_epochs(default if epochs is None else epochs), **changes)
        check_settings(recipe, max_lr)
        recipe = recipe.for_processes(PartialState(cpu=cpu).num_processes)
        folder = run_folder(name or recipe.name)
        plan = {"recipe": asdict(recipe), "data": data.name, "max_lr": max_lr}
        checkpoint = folder / "checkpoint.pt"
        # A resumed run keeps its precision, so that both parts are comparable.
        resumes = is_unfinished(folder, plan) and checkpoint.exists()
        saved = load_tensors(checkpoint).get("precision") if resumes else None
        accelerator = make_accelerator(cpu, folder if tensorboard else None, saved or recipe.precision)
        if accelerator.is_main_process:
            open_folder(folder, plan)
        accelerator.init_trackers("tensorboard")
        set_seed(recipe.seed)
        loaders = make_loaders(data, recipe, accelerator.device)
        return cls(replace(session, recipe=recipe), data, accelerator, folder, loaders)

    def __str__(self) -> str:
        return f"{hardware_of(self.accelerator)}\n{self.data}"

    def build(self) -> nn.Module:
        """Make the network and its optimizer from the recipe's seed; each process draws its own augmentation."""
        set_seed(self.session.recipe.seed, device_specific=True)
        self.model, self.optimizer = self.session.build(self.accelerator.device)
        return self.model

    def find_lr(self) -> LRSearch:
        """Run the LR range test, or read the result of the run that resumes."""
        file = self.folder / "lr_finder.json"
        with self.accelerator.main_process_first():  # it searches, the other processes read its result
            if not file.exists():
                steps = SMOKE_SEARCH_STEPS if smoke() else SEARCH_STEPS
                search = find_lr(self.model, self.optimizer, self.loaders[0], self.accelerator, steps)
                write_text(file, json.dumps(asdict(search)))
            try:
                self.search = LRSearch(**json.loads(file.read_text("utf-8")))
            except (OSError, ValueError, TypeError) as error:
                raise FileError(f"{file} cannot be read: remove it, and the LR finder runs again.") from error
        return self.search

    def fit(self, max_lr: float) -> History:
        """Train by the one-cycle policy; after each epoch the folder holds the log, the history and a checkpoint.

        A run that resumes ends exactly as if it had never been interrupted.
        """
        self.max_lr = max_lr
        recipe, accelerator, path = self.session.recipe, self.accelerator, self.folder / "checkpoint.pt"
        accelerator.print(
            f"{self.data.name}, {recipe.epochs} epochs, max LR {max_lr:.4f}, seed {recipe.seed}, {hardware_of(accelerator)}",
            flush=True,
        )
        scheduler = one_cycle(self.optimizer, max_lr, recipe, batches=len(self.loaders[0]))
        model, optimizer, *loaders = accelerator.prepare(self.model, self.optimizer, *self.loaders)
        if recipe.compile:
            compile_where_it_pays(model, accelerator, steps=recipe.epochs * len(loaders[0]))
        # self.model, because what prepare returned may be wrapped, which would change the keys of the weights
        state = TrainingState(self.model, optimizer, scheduler, loaders[0], accelerator)
        if path.exists():
            self.history = state.restore(path)
            log = self.history.log
            accelerator.print(f"Resuming after epoch {len(self.history.lr)}:", *log, sep="\n", flush=True)

        def after_epoch(history: History) -> None:
            measured = {name.replace("_", "/"): getattr(history, name)[-1] for name in MEASURES}
            accelerator.log(measured, step=len(history.lr))
            state.save(path, history)
            if accelerator.is_main_process:
                write_history(self.folder, history)

        fit(model, optimizer, scheduler, tuple(loaders), recipe, accelerator, self.history, after_epoch)
        return self.history

    @cached_property
    def predictions(self) -> tuple[Tensor, Tensor]:
        """Logits ``(N, 10)`` and labels ``(N,)`` of the test images."""
        return predict(self.model, self.loaders[1])

    @cached_property
    def sample(self) -> tuple[Tensor, Tensor]:
        """One batch of augmented training images ``(B, 3, 32, 32)`` and their labels ``(B,)``."""
        return next(iter(self.loaders[0]))

    def normalized(self, indices: Tensor) -> Tensor:
        """Some test images by their indices, as the network sees them: ``(N, 3, 32, 32)``, on its device."""
        images = self.data.test_images[indices].to(self.accelerator.device)
        return self.data.normalize(images)

    def show(self, *names: str) -> None:
        """Draw pictures, functions of ``utils.plots``; save each as ``<name>.png`` and, in a notebook, display it."""
        for name in names:
            figure = getattr(plots, name)(self)
            figure.savefig(self.folder / f"{name}.png")
            if self.accelerator.trackers:
                self.accelerator.get_tracker("tensorboard", unwrap=True).add_figure(name, figure, len(self.history.lr))
            if "ipykernel" in sys.modules:
                from IPython.display import display

                display(figure)

    def finish(self) -> dict:
        """Write ``weights.pt``, the trained network, and ``run.json``, and print the results.

        ``run.json`` holds the data, the recipe, the hardware and the accuracy, in percent; ``flip_averaged``
        is the accuracy of the mean prediction for each image and its mirror image, a test-time trick.
        """
        recipe, history, data, accelerator = self.session.recipe, self.history, self.data, self.accelerator
        save_weights(self.folder / "weights.pt", self.model, recipe.session, data)
        facts = {
            "session": recipe.session,
            "data": data.name,
            "is_cifar10": data.is_cifar10,
            "train_images": len(data.train_labels),
            "test_images": len(data.test_labels),
            "smoke": smoke(),
            "epochs": len(history.lr),
            "top_epoch": recipe.top_epoch,
            "batch_size": recipe.batch_size,
            "first_lr": history.step_lr[0],
            "max_lr": self.max_lr,
            "seed": recipe.seed,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "train_accuracy": history.train_accuracy[-1],
            "test_accuracy": history.test_accuracy[-1],
        }
        if self.session.flip_averaged:
            accuracy = flip_averaged_accuracy(self.model, self.loaders[1], self.predictions[0])
            facts["flip_averaged"] = round(accuracy, 2)
        facts |= {
            "seconds_per_epoch": round(statistics.median(history.seconds), 2),
            "hardware": hardware_of(accelerator),
            "precision": precision_of(accelerator),
            "torch": torch.__version__,
        }
        write_text(self.folder / "run.json", json.dumps(facts, indent=2) + "\n")
        accelerator.end_training()
        print(summary(facts), flush=True)
        return facts

    def submission(self) -> str:
        """What the assignment page asks for, in Markdown; also written to ``submission.md``."""
        return write_submission(self.folder, self.session.answers, repository())


def check_settings(recipe: Recipe, max_lr: float | None) -> None:
    """Raise TrainingError if a setting is out of its range."""
    for name, value, low, high in (
        ("epochs", recipe.epochs, 1, 10_000),
        ("batch size", recipe.batch_size, 1, 1_000_000),
        ("seed", recipe.seed, 0, 2**32 - 1),
        ("max LR", max_lr, 1e-9, 1e6),
    ):
        if value is not None and not low <= value <= high:
            raise TrainingError(f"{name} is {value}: it must be from {low} to {high}.")
