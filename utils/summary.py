"""The table of a network's layers."""

from torch import nn
from torchinfo import summary
from torchinfo.enums import Units

COLUMNS = ("kernel_size", "input_size", "output_size", "num_params", "mult_adds", "trainable")


def model_table(model: nn.Module, batch_size: int = 20) -> str:
    """torchinfo's table for a batch of 3×32×32 images: kernels, shapes, parameters, mult-adds."""
    table = summary(
        model,
        input_size=(batch_size, 3, 32, 32),
        col_names=COLUMNS,
        row_settings=("var_names",),
        col_width=18,
        device="cpu",
        verbose=0,
    )
    text = str(table)
    for unit in Units:  # since Python 3.11 torchinfo prints "Units.MEGABYTES" where it means "M"
        text = text.replace(str(unit), unit.value)
    return text
