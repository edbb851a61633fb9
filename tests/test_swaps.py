"""What a student puts in place of network, optimizer, schedule, criterion or transform.

Each trains for two epochs, resumes, finishes, is handed in and classifies; or ends with one line.
"""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18
from torchvision.transforms import v2

from models.model9 import TransformerModel
from tests.small import FEW_DIGITS, SMALL, Cells, cells_of, interrupt_epoch, save_weights
from utils import plots
from utils.classify import Classifier
from utils.data import make_loaders
from utils.errors import FileError, TrainingError
from utils.files import load_tensors
from utils.transforms import Compose

MAX_LR = 0.01
STEPS = 40


class Own(nn.Module):
    """A small network of one's own."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.features(images).mean(dim=(2, 3)))


class Residual(TransformerModel):
    """ULTIMUS with a residual connection around each block."""

    def __init__(self):
        super().__init__(a=8)

    def forward(self, images: Tensor) -> Tensor:
        x = self.features(images)
        for block in self.ultimus_blocks:
            x = x + block(x)
        return self.final_fc(x)


TEN_CLASSES = partial(resnet18, num_classes=10)


def small_adamw(model: nn.Module, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.003)


def with_network(folder, network: Callable[[], nn.Module]) -> Cells:
    cells = cells_of(folder, network=network)
    cells.make_schedule(MAX_LR)
    return cells


def with_optimizer(folder, optimizer: Callable[..., torch.optim.Optimizer]) -> Cells:
    """``optimizer`` is a class of PyTorch."""
    cells = cells_of(folder)
    cells.optimizer = optimizer(cells.model.parameters(), lr=0.003)
    cells.make_schedule(MAX_LR)
    return cells


def cosine(optimizer):
    return CosineAnnealingLR(optimizer, T_max=STEPS)


def one_cycle_of_pytorch(optimizer):
    """With its defaults, it moves the momentum, too."""
    return OneCycleLR(optimizer, max_lr=MAX_LR, total_steps=STEPS)


def falling(step):
    return 1 / (step + 1)


def by_a_function(optimizer):
    return LambdaLR(optimizer, falling)


def one_after_the_other(optimizer):
    schedules = [LambdaLR(optimizer, falling), CosineAnnealingLR(optimizer, T_max=STEPS)]
    return SequentialLR(optimizer, schedules, milestones=[10])


def with_schedule(folder, schedule: Callable) -> Cells:
    cells = cells_of(folder, optimizer=small_adamw)
    cells.scheduler = schedule(cells.optimizer)
    return cells


def scale_and_shift(images: Tensor) -> Tensor:
    """A uint8 batch in, float32 out."""
    return images / 128 - 1


def with_transform(folder, transform: Callable[[Tensor], Tensor]) -> Cells:
    cells = cells_of(folder)
    cells.train_loader, _ = make_loaders(FEW_DIGITS, transform, 2, cells.run.device)
    cells.make_schedule(MAX_LR)
    return cells


def with_dataset(folder) -> Cells:
    """PyTorch's own dataset and loaders, of single images."""
    cells = cells_of(folder)
    images = FEW_DIGITS.normalize(FEW_DIGITS.train_images)
    train_set = TensorDataset(images, FEW_DIGITS.train_labels)
    cells.train_loader = DataLoader(train_set, batch_size=2, shuffle=True)
    cells.make_schedule(MAX_LR)
    return cells


def with_criterion(folder, criterion: Callable[[Tensor, Tensor], Tensor]) -> Cells:
    cells = cells_of(folder)
    cells.criterion = criterion
    cells.make_schedule(MAX_LR)
    return cells


def squared_error(logits: Tensor, labels: Tensor) -> Tensor:
    return ((logits - nn.functional.one_hot(labels, 10)) ** 2).mean()


SWAPS = {
    "smaller ULTIMUS": partial(with_network, network=SMALL),
    "own network": partial(with_network, network=Own),
    "residual connections": partial(with_network, network=Residual),
    "torchvision's network": partial(with_network, network=TEN_CLASSES),
    "AdamW": partial(with_optimizer, optimizer=torch.optim.AdamW),
    "RMSprop": partial(with_optimizer, optimizer=torch.optim.RMSprop),
    "cosine": partial(with_schedule, schedule=cosine),
    "one-cycle of PyTorch": partial(with_schedule, schedule=one_cycle_of_pytorch),
    "function of the step": partial(with_schedule, schedule=by_a_function),
    "two schedules": partial(with_schedule, schedule=one_after_the_other),
    "own transform": partial(with_transform, transform=scale_and_shift),
    "own transform in Compose": partial(with_transform, transform=Compose([scale_and_shift])),
    "torchvision's transform": partial(
        with_transform, transform=v2.Compose([v2.RandomHorizontalFlip(), scale_and_shift])
    ),
    "PyTorch's dataset": with_dataset,
    "class weights": partial(
        with_criterion, criterion=nn.CrossEntropyLoss(weight=torch.arange(1.0, 11.0))
    ),
    "own criterion": partial(with_criterion, criterion=squared_error),
}


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "digit.png"
    Image.fromarray(FEW_DIGITS.test_images[0].permute(1, 2, 0).numpy()).save(path)
    return path


@pytest.mark.parametrize("make_cells", SWAPS.values(), ids=SWAPS)
def test_a_swap_resumes_and_is_handed_in(tmp_path, picture, capsys, make_cells):
    """Stopped in its second epoch and trained to the end in a new kernel."""
    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_epoch(2, patch)
        make_cells(folder).fit()
    cells = make_cells(folder)
    history = cells.fit()
    output = capsys.readouterr().out
    assert "Resuming after epoch 1" in output
    assert "moved" not in output
    assert history.epochs == 2
    assert len(history.step_lr) == STEPS
    cells.run.finish()
    cells.run.submission()
    assert {"run.json", "submission.md", "weights.pt"} <= {path.name for path in folder.iterdir()}
    classify = Classifier(folder / "weights.pt", network=cells.run.network_function)
    saved = classify.model.state_dict()
    torch.testing.assert_close(saved, cells.model.state_dict(), rtol=0, atol=0)
    assert len(classify(picture)) == 3


def test_submission_contains_the_own_network(tmp_path):
    cells = with_network(tmp_path / "run", Own)
    cells.fit()
    cells.run.finish()
    cells.run.submission()
    page = (tmp_path / "run/submission.md").read_text("utf-8")
    assert "nn.Conv2d(3, 8, 3, stride=4)" in page
    assert "Own() (" in page


def test_own_schedule_decides_about_the_learning_rate(tmp_path):
    step_lr = with_schedule(tmp_path / "run", cosine).fit().step_lr
    assert step_lr[0] == 0.003
    assert step_lr[20] == pytest.approx(0.0015)


def test_own_transform_trains_the_network(tmp_path):
    """It is applied to whole batches of bytes."""
    batches = []

    def transform(images):
        batches.append((images.dtype, tuple(images.shape)))
        return images / 255

    with_transform(tmp_path / "run", transform).fit()
    assert set(batches) == {(torch.uint8, (2, 3, 32, 32))}


def test_weights_of_a_network_of_models_need_no_arguments(tmp_path):
    cells = with_network(tmp_path / "run", SMALL)
    cells.fit()
    model = Classifier(tmp_path / "run/weights.pt").model
    assert isinstance(model, TransformerModel)
    assert any(isinstance(layer, nn.MaxPool2d) for layer in model.modules())


def test_weights_of_another_network_name_the_remedy(foreign_run):
    with pytest.raises(
        FileError, match=r"Own, which is not in models/.*Classifier\(path, network="
    ):
        Classifier(foreign_run.folder.path / "weights.pt")


def test_weights_name_the_network_and_its_arguments(tmp_path):
    save_weights(tmp_path / "weights.pt", TEN_CLASSES, FEW_DIGITS)
    saved = load_tensors(tmp_path / "weights.pt")["network"]
    assert saved["class"] == "torchvision.models.resnet.resnet18"
    assert saved["arguments"] == {"num_classes": 10}


@pytest.fixture(scope="module")
def foreign_run(tmp_path_factory):
    """A trained network without ULTIMUS blocks and without ``layer3``."""
    cells = cells_of(tmp_path_factory.mktemp("foreign") / "run", network=Own)
    cells.train()
    return cells.run


def show(run, picture: str) -> None:
    contents = {
        "signal_rank": (run.model, run.data),
        "attention_maps": (run.model, run.predictions, run.data),
        "grad_cam": (run.model, run.predictions, run.data),
    }
    run.show(getattr(plots, picture), *contents[picture])


@pytest.mark.parametrize("picture", ["signal_rank", "attention_maps", "grad_cam"])
def test_picture_of_a_foreign_network_costs_one_line(foreign_run, full, capsys, picture):
    show(foreign_run, picture)
    line = capsys.readouterr().out.removesuffix("\n").split("\r")[-1]
    assert line.startswith(f"The picture {picture} cannot be drawn (")
    assert "\n" not in line
    assert not (foreign_run.folder.path / f"{picture}.png").exists()


def test_grad_cam_of_a_small_map_costs_one_line(tmp_path, full, capsys):
    """From 32×32 pixels, ``layer3`` of ImageNet's ResNet makes 2×2."""
    run = cells_of(tmp_path / "run", network=TEN_CLASSES).run
    labels = FEW_DIGITS.test_labels
    wrong = nn.functional.one_hot((labels + 1) % 10, 10).float()  # all are misclassified
    run.show(plots.grad_cam, run.model, (wrong, labels), run.data)
    line = capsys.readouterr().out.removesuffix("\n")
    assert "\n" not in line
    assert "grad_cam cannot be drawn" in line
    assert "2×2, but Grad-CAM needs 5×5 or more" in line


def test_schedule_that_needs_the_loss(tmp_path):
    cells = with_schedule(tmp_path / "run", ReduceLROnPlateau)
    with pytest.raises(TrainingError, match="ReduceLROnPlateau is stepped after an epoch"):
        cells.fit()


def test_optimizer_that_needs_several_passes(tmp_path):
    cells = cells_of(tmp_path / "run")
    cells.optimizer = torch.optim.LBFGS(cells.model.parameters())
    with pytest.raises(TrainingError, match="LBFGS needs several passes"):
        cells.train()


def test_optimizer_that_needs_several_passes_in_the_lr_finder(tmp_path):
    cells = cells_of(tmp_path / "run")
    optimizer = torch.optim.LBFGS(cells.model.parameters())
    with pytest.raises(TrainingError, match="LBFGS needs several passes"):
        cells.run.find_lr(cells.model, optimizer, cells.train_loader)
