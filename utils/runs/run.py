"""A run: one training of a session, with its device, its folder, its checkpoint and its pictures."""

import json
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from utils import plots
from utils.data import ImageData, make_loaders
from utils.recipes import Recipe
from utils.runs.checkpoint import TrainingState, about_network, load_checkpoint, write_history
from utils.runs.folder import is_unfinished, move_aside, open_folder
from utils.runs.report import repository, results, summary, write_submission
from utils.schedule import SEARCH_STEPS, LRSearch, find_lr, one_cycle
from utils.sessions import Session
from utils.system.cpu import compile_where_it_pays
from utils.system.device import broadcast, hardware_of, join_processes, make_accelerator
from utils.system.errors import FileError, TrainingError
from utils.system.files import replace_file, save_tensors, write_text
from utils.system.settings import run_folder, smoke
from utils.training import MEASURES, History, fit, predict

SMOKE_EPOCHS, SMOKE_SEARCH_STEPS = 2, 24


@dataclass
class Run:
    """One training run of a session: open, build, find_lr, fit, show and finish, in this order.

    All files are written to ``folder``. An interrupted run resumes after its last complete epoch. With several
    processes, all of them train and the first one writes.
    """

    session: Session  # its recipe is the one that this run trains with
    data: ImageData
    accelerator: Accelerator
    folder: Path
    loaders: tuple[DataLoader, DataLoader]  # training and test batches, on the device
    model: Any = field(default=None, init=False)  # the network, an nn.Module
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

        Raises TrainingError: a setting is out of its range. FileError: the folder or its checkpoint cannot be used.
        """
        recipe = session.recipe.for_images(len(data.train_labels))
        default = SMOKE_EPOCHS if smoke() else recipe.epochs
        recipe = replace(recipe.for_epochs(default if epochs is None else epochs), **changes)
        check_settings(recipe, max_lr)
        state = join_processes(cpu)
        recipe = recipe.for_processes(state.num_processes)
        folder, saved = run_folder(name or recipe.name), None
        plan = {"recipe": asdict(recipe), "data": data.name, "max_lr": max_lr}
        if state.is_main_process:
            saved = load_checkpoint(folder) if is_unfinished(folder, plan) else None
            open_folder(folder, plan)
        # A resumed run keeps its precision, so that both parts are comparable.
        precision = broadcast(saved and saved.get("precision")) or recipe.precision
        accelerator = make_accelerator(cpu, folder if tensorboard else None, precision)
        accelerator.init_trackers("tensorboard")
        loaders = make_loaders(data, recipe, accelerator.device)
        run = cls(replace(session, recipe=recipe), data, accelerator, folder, loaders)
        run.build()
        return run

    def __str__(self) -> str:
        return f"{hardware_of(self.accelerator)}\n{self.data}"

    def new_network(self) -> tuple[nn.Module, Optimizer]:
        """A network and its optimizer from the recipe's seed; each process draws its own augmentation."""
        set_seed(self.session.recipe.seed, device_specific=True)
        return self.session.build(self.accelerator.device)

    def build(self) -> nn.Module:
        """Make the network; later calls reset the same one, so that a notebook's variable stays the trained one."""
        model, self.optimizer = self.new_network()
        if self.model is None:
            self.model = model
        else:
            self.model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
            self.model.load_state_dict(model.state_dict())
            self.optimizer = self.session.optimizer(self.model, self.session.recipe.weight_decay)
        self.history = History()
        self.__dict__.pop("predictions", None)
        return self.model

    def find_lr(self) -> LRSearch:
        """Run the LR range test on a newly built network, or read the result of the run that resumes."""
        file, search = self.folder / "lr_finder.json", None
        if self.accelerator.is_main_process:
            with suppress(OSError, ValueError, TypeError):  # it is not there, or damaged
                search = LRSearch(**json.loads(file.read_text("utf-8")))
            if search is None:
                steps = SMOKE_SEARCH_STEPS if smoke() else SEARCH_STEPS
                search = find_lr(*self.new_network(), self.loaders[0], self.accelerator, steps)
                write_text(file, json.dumps(asdict(search)))
        self.search = broadcast(search)
        return self.search

    def fit(self, max_lr: float) -> History:
        """Train by the one-cycle policy; after each epoch the folder holds the log, the history and a checkpoint.

        It starts from the checkpoint if that is of the same max LR, else from what ``build`` makes, never from weights
        that an interruption has left. A run that resumes ends exactly as if it had never been interrupted.
        """
        check_settings(self.session.recipe, max_lr)
        self.build()
        recipe, accelerator, path = self.session.recipe, self.accelerator, self.folder / "checkpoint.pt"
        settings = f"{recipe.epochs} epochs, max LR {max_lr:.4f}, seed {recipe.seed}"
        accelerator.print(f"{self.data.name}, {settings}, {hardware_of(accelerator)}", flush=True)
        saved = None
        if accelerator.is_main_process:
            saved = load_checkpoint(self.folder)
            if saved and saved.get("max_lr") != max_lr:
                accelerator.print(move_aside(self.folder, keep=("plan.json", "lr_finder.json")), flush=True)
                saved = None
        saved = broadcast(saved)
        accelerator.free_memory()  # of an earlier call
        if accelerator.scaler:
            accelerator.scaler.load_state_dict(torch.amp.GradScaler(accelerator.device.type).state_dict())
        scheduler = one_cycle(self.optimizer, max_lr, recipe, batches=len(self.loaders[0]))
        model, optimizer, *loaders = accelerator.prepare(self.model, self.optimizer, *self.loaders)
        if recipe.compile:
            compile_where_it_pays(model, accelerator, steps=recipe.epochs * len(loaders[0]))
        # self.model, because what prepare returned may be wrapped, which would change the keys of the weights
        order = getattr(loaders[0], "synchronized_generator", None)
        state = TrainingState(self.model, optimizer, scheduler, order, accelerator, max_lr)
        history = self.history
        if saved:
            history = state.restore(saved, path)
            accelerator.print(f"Resuming after epoch {len(history.lr)}:", *history.log, sep="\n", flush=True)
        about = partial(about_network, self.model, recipe, self.data)

        def after_epoch(history: History) -> None:
            measured = {name.replace("_", "/"): getattr(history, name)[-1] for name in MEASURES}
            accelerator.log(measured, step=len(history.lr))
            state.save(path, history, about())
            if accelerator.is_main_process:
                write_history(self.folder, history)

        fit(model, optimizer, scheduler, tuple(loaders), recipe, accelerator, history, after_epoch)
        if accelerator.is_main_process:
            save_tensors(self.folder / "weights.pt", about())
        self.history, self.max_lr = history, max_lr  # only now: weights of an unfinished epoch are nobody's result
        return history

    @cached_property
    def predictions(self) -> tuple[Tensor, Tensor]:
        """Logits ``(N, 10)`` and labels ``(N,)`` of the test images; ``build`` forgets them."""
        return predict(self.model, self.loaders[1])

    @property
    def sample(self) -> tuple[Tensor, Tensor]:
        """One batch of augmented training images ``(B, 3, 32, 32)`` and their labels ``(B,)``, always the same."""
        device = self.accelerator.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self.session.recipe.seed)
            return next(iter(self.loaders[0]))

    def normalized(self, indices: Tensor) -> Tensor:
        """Some test images by their indices, as the network sees them: ``(N, 3, 32, 32)``, on its device."""
        return self.data.normalize(self.data.test_images[indices].to(self.accelerator.device))

    def show(self, *names: str) -> None:
        """Draw and save pictures of ``utils.plots``, and display them in a notebook; a line says which cannot be drawn."""
        for name in names:
            try:
                with plots.style():
                    figure = getattr(plots, name)(self)
                    replace_file(self.folder / f"{name}.png", partial(figure.savefig, format="png"))
                    if self.accelerator.trackers:
                        tensorboard = self.accelerator.get_tracker("tensorboard", unwrap=True)
                        tensorboard.add_figure(name, figure, len(self.history.lr))
                    if "ipykernel" in sys.modules:
                        from IPython.display import display

                        display(figure)
            except Exception as error:
                if smoke() or isinstance(error, FileError):  # tests must see it; on a full disk, all would fail
                    raise
                reason = str(error).partition("\n")[0]
                print(f"The picture {name} cannot be drawn ({type(error).__name__}: {reason}).", flush=True)

    def finish(self) -> dict:
        """Write ``run.json``, which marks the run as finished, and print the results; TrainingError if it is not trained."""
        if len(self.history.lr) < self.session.recipe.epochs:
            raise TrainingError("the network is not trained to the end: call fit first, which also resumes.")
        facts = results(self)
        write_text(self.folder / "run.json", json.dumps(facts, indent=2) + "\n")
        self.accelerator.end_training()
        print(summary(facts), flush=True)
        return facts

    def submission(self) -> str:
        """Write ``submission.md``, what the assignment page asks for; returns what it holds, in a few lines."""
        return write_submission(self.folder, self.session.answers, repository())


def check_settings(recipe: Recipe, max_lr: float | None) -> None:
    """Raise TrainingError if a setting is out of its range."""
    counts = ("epochs", recipe.epochs, 1, 10_000), ("batch size", recipe.batch_size, 1, 1_000_000)
    for name, value, low, high in (*counts, ("seed", recipe.seed, 0, 2**32 - 1), ("max LR", max_lr, 1e-9, 1e6)):
        if value is not None and not low <= value <= high:
            raise TrainingError(f"{name} is {value}: it must be from {low} to {high}.")
