"""Memory that runs out is one line, wherever it does."""

from unittest.mock import Mock

import numpy as np
import pytest
import torch

from tests.conftest import ROOT
from tests.small import TWO_EPOCHS, exit_message
from utils.errors import TrainingError, explain_out_of_memory, one_line_errors

TOO_MUCH = 1 << 62  # bytes, more than any address space


def allocate_with_numpy():
    np.empty(TOO_MUCH, dtype=np.int8)


def allocate_with_torch():
    torch.empty(TOO_MUCH, dtype=torch.int8)


def allocate_with_python():
    bytearray(TOO_MUCH)


ALLOCATIONS = [allocate_with_numpy, allocate_with_torch, allocate_with_python]


@pytest.mark.parametrize("allocate", ALLOCATIONS)
def test_program_without_memory_exits_with_one_line(allocate):
    with pytest.raises(SystemExit) as stop, one_line_errors("main.py"):
        allocate()
    assert stop.value.code.startswith("main.py: out of memory: close other programs")
    assert "\n" not in stop.value.code


def test_other_error_of_pytorch_is_not_taken_for_memory():
    with pytest.raises(RuntimeError, match="size mismatch"), one_line_errors("main.py"):
        raise RuntimeError("size mismatch")


@pytest.mark.parametrize("allocate", ALLOCATIONS)
def test_step_without_memory_names_what_to_change_in_the_cell(allocate):
    with pytest.raises(TrainingError) as failure, explain_out_of_memory(batch_size=128):
        allocate()
    assert "SESSION….replace(batch_size=64) in the cell with Run.open" in str(failure.value)


@pytest.mark.parametrize(
    "words, place",
    [
        (TWO_EPOCHS, "utils.data.load_digits"),
        (("classify", ROOT / "static/horse.png"), "utils.classify.Classifier.__call__"),
    ],
    ids=["loading the images", "predicting"],
)
def test_command_without_memory_exits_with_one_line(folder, monkeypatch, words, place):
    monkeypatch.setattr(place, Mock(side_effect=MemoryError))
    assert "out of memory: close other programs" in exit_message(*words)
