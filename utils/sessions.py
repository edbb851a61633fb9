"""The three sessions, which ``main.py`` and the benchmarks train as their notebooks do."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from torch import nn
from torch.optim import Optimizer

from models.model7 import ResNet18
from models.model8 import CustomResNet
from models.model9 import TransformerModel
from utils import plots
from utils.data import make_loaders, train_transform
from utils.optimizers import adam, sgd
from utils.recipes import SESSION7, SESSION8, SESSION9, Recipe
from utils.runs.run import Run
from utils.schedule import one_cycle


@dataclass(frozen=True)
class Session:
    """What one assignment trains and shows."""

    recipe: Recipe
    title: str
    network: Callable[..., nn.Module]
    optimizer: Callable[[nn.Module, float], Optimizer]  # of the network and the weight decay
    pictures: tuple[str, ...]  # names of files without their ending
    misclassified: int = 10  # images to show

    @property
    def name(self) -> str:
        return f"session{self.recipe.session}"

    def replace(self, **changes) -> "Session":
        return replace(self, **changes)


PICTURES = (
    "sample_training_images",
    "lr_finder_plot",
    "loss_and_accuracy_graphs",
    "lr_history_plot",
    "misclassified_images",
    "confusion_matrix",
)

SESSIONS = {
    7: Session(
        SESSION7, "ResNet-18", ResNet18, partial(sgd, bias_lr=8.0), pictures=(*PICTURES, "grad_cam")
    ),
    8: Session(SESSION8, "a custom ResNet", CustomResNet, sgd, pictures=PICTURES, misclassified=20),
    9: Session(
        SESSION9,
        "ULTIMUS",
        TransformerModel,
        adam,
        pictures=(*PICTURES, "signal_rank", "attention_maps"),
        misclassified=20,
    ),
}


def train_session(session: Session, run: Run, max_lr: float | None = None) -> None:
    """Train as the session's notebook does; by default at the LR finder's max LR."""
    recipe = run.recipe
    transform = train_transform(recipe, run.data)
    train_loader, test_loader = make_loaders(run.data, transform, recipe.batch_size, run.device)
    run.show(plots.sample_training_images, train_loader, run.data)
    model = run.build(session.network)
    criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    optimizer = session.optimizer(model, recipe.weight_decay)
    if max_lr is None:
        search = run.find_lr(model, optimizer, train_loader)
        print(search, flush=True)
        run.show(plots.lr_finder_plot, search, run.data)
        max_lr = search.suggestion
    scheduler = one_cycle(optimizer, max_lr, recipe, steps_per_epoch=len(train_loader))
    run.fit(model, criterion, optimizer, scheduler, train_loader, test_loader)


def show_results(session: Session, run: Run) -> None:
    """Draw the pictures of a trained run that its notebook shows after the training."""
    data = run.data
    run.show(plots.loss_and_accuracy_graphs, run.history, data, run.recipe.label_smoothing)
    run.show(plots.lr_history_plot, run.history, data)
    run.show(plots.misclassified_images, run.predictions, data, session.misclassified)
    run.show(plots.confusion_matrix, run.predictions, data)
    if "grad_cam" in session.pictures:
        run.show(plots.grad_cam, run.model, run.predictions, data)
    if "signal_rank" in session.pictures:
        run.show(plots.signal_rank, run.model, data)
        run.show(plots.attention_maps, run.model, run.predictions, data)
