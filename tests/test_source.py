"""The source of a network: shown, saved with a run, and compared between runs."""

import importlib
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from nbconvert.filters import markdown2html

from models.model7 import ResNet18
from models.model9 import TransformerModel
from utils.errors import TrainingError
from utils.source import (
    check_unchanged,
    code_digest,
    show_code,
    source_pieces,
    source_text,
    underlying,
)

MODULE = '''
"""A network of one's own."""

import torch
from torch import nn

SCALE = 0.5
WIDTHS = [16, 32]


def helper(x):
    """Halve."""
    return x * SCALE


class Base(nn.Module):
    def features(self, x):
        return helper(x)


class Net(Base):
    """Features, halved and shifted."""

    depth = 2

    def __init__(self, factor=1):
        super().__init__()
        self.norm = nn.BatchNorm1d(factor * WIDTHS[0])

    def forward(self, x):
        # Shift.
        return self.features(self.norm(x)) + self.depth


@torch.no_grad()
def make():
    return Net()


def unused():
    return 1
'''


@pytest.fixture
def write_module(tmp_path, monkeypatch):
    """A function that writes a module and imports it."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path)
    names = []

    def write(name: str, source: str = MODULE):
        (tmp_path / f"{name}.py").write_text(source)
        importlib.invalidate_caches()
        names.append(name)
        return importlib.import_module(name)

    yield write
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def shell(monkeypatch):
    """IPython, as in a notebook."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # the shell replaces it
    yield InteractiveShell.instance()
    InteractiveShell.clear_instance()


def changed(old: str, new: str) -> str:
    assert MODULE.count(old) == 1
    return MODULE.replace(old, new)


def test_pieces_are_what_the_network_uses_of_its_module(write_module):
    pieces = source_pieces(write_module("used").Net)
    assert set(pieces) == {"SCALE", "WIDTHS", "helper", "Base", "Net"}


def test_pieces_come_before_what_uses_them(write_module):
    names = list(source_pieces(write_module("order").Net))
    assert names.index("SCALE") < names.index("helper") < names.index("Base") < names.index("Net")


def test_code_of_libraries_is_no_piece():
    names = set(source_pieces(TransformerModel))
    assert names == {
        "DIM",
        "HEAD",
        "conv_bn_relu",
        "UltimusBlock",
        "near_isometry",
        "cosine_filters",
        "TransformerModel",
    }


def test_function_that_makes_a_network_includes_its_classes():
    assert {"ResNet18", "ResNet", "BasicBlock", "stage"} <= set(source_pieces(ResNet18))


def test_text_is_the_code_as_it_is_written(write_module):
    text = source_text(write_module("text").Net)
    assert "        # Shift.\n        return self.features(self.norm(x)) + self.depth\n" in text


def test_text_is_python(write_module):
    compile(source_text(write_module("python").helper), "network.py", "exec")


SAME = {
    "comment": changed("# Shift.", "# Shift by the depth."),
    "docstring": changed('"""Halve."""', '"""Multiply by a half."""'),
    "new docstring": changed("        # Shift.", '        """Shift."""'),
    "blank lines": changed("        # Shift.", "\n        # Shift.\n"),
    "moved lines": "# A line more.\n\n" + MODULE,
    "layout": changed("x * SCALE", "(\n        x * SCALE\n    )"),
    "what is not used": changed("return 1", "return 2"),
}

OTHER = {
    "operator": changed("self.norm(x)) + ", "self.norm(x)) - "),
    "helper": changed("x * SCALE", "x / SCALE"),
    "constant": changed("SCALE = 0.5", "SCALE = 0.25"),
    "list": changed("[16, 32]", "[16, 64]"),
    "class constant": changed("depth = 2", "depth = 3"),
    "base class": changed("return helper(x)", "return helper(helper(x))"),
}


@pytest.mark.parametrize("source", SAME.values(), ids=SAME)
def test_digest_of_the_same_code(write_module, source):
    before = code_digest(write_module("before").make)
    assert code_digest(write_module("after", source).make) == before


@pytest.mark.parametrize("source", OTHER.values(), ids=OTHER)
def test_digest_of_other_code(write_module, source):
    before = code_digest(write_module("before").make)
    assert code_digest(write_module("after", source).make) != before


@pytest.mark.parametrize("source", SAME.values(), ids=SAME)
def test_file_that_changes_nothing_after_its_import(write_module, tmp_path, source):
    make = write_module("edited").make
    before = code_digest(make)
    (tmp_path / "edited.py").write_text(source)
    assert code_digest(make) == before


CHANGED_FILES = {name: OTHER[name] for name in ("operator", "helper", "class constant")} | {
    "new method": changed("depth = 2", "depth = 2\n\n    def features(self, x):\n        return x"),
    "default": changed("def __init__(self, factor=1)", "def __init__(self, factor=2)"),
    "function removed": changed("def helper(", "def helper_of_before("),
    "syntax error": changed("def helper(", "def helper("[:-1]),
}


@pytest.mark.parametrize("source", CHANGED_FILES.values(), ids=CHANGED_FILES)
def test_file_that_has_changed_after_its_import(write_module, tmp_path, source):
    make = write_module("edited").make
    (tmp_path / "edited.py").write_text(source)
    with pytest.raises(TrainingError, match=r"^edited\.py has changed .* restart the kernel"):
        code_digest(make)


@pytest.mark.parametrize("assignment", ["SCALE = 2.0", "SCALE: float = 2.0"])
def test_constant_that_has_changed_after_its_import(write_module, tmp_path, assignment):
    make = write_module("edited").make
    (tmp_path / "edited.py").write_text(changed("SCALE = 0.5", assignment))
    with pytest.raises(
        TrainingError, match=r"^edited\.py says SCALE = 2\.0, .* restart the kernel"
    ):
        code_digest(make)


def test_constant_that_is_assigned_twice_has_its_last_value(write_module):
    module = write_module("edited", changed("SCALE = 0.5", "SCALE = 2.0\nSCALE = 0.5"))
    assert "SCALE = 0.5" in source_text(module.make)


def test_functions_of_one_name_in_a_file_are_unchanged(write_module):
    module = write_module("lambdas", "first = lambda x: x + 1\nsecond = lambda x: x + 2\n")
    check_unchanged(module.first)
    check_unchanged(module.second)


def test_class_of_a_cell_has_its_source(shell):
    shell.run_cell(
        "WIDTH = 3\nclass InACell:\n    def forward(self, x):\n        return x * WIDTH\n"
    )
    text = source_text(shell.user_ns["InACell"])
    assert "WIDTH = 3" in text
    assert "return x * WIDTH" in text


def test_class_of_a_cell_that_has_no_method_has_its_source(shell):
    shell.run_cell("class Plain:\n    width = 8\n")
    assert "width = 8" in source_text(shell.user_ns["Plain"])


def test_class_of_a_cell_that_runs_again_has_its_new_source(shell):
    shell.run_cell("class Again:\n    def forward(self, x):\n        return x + 1\n")
    before = code_digest(shell.user_ns["Again"])
    shell.run_cell("class Again:\n    def forward(self, x):\n        return x + 2\n")
    assert "x + 2" in source_text(shell.user_ns["Again"])
    assert code_digest(shell.user_ns["Again"]) != before


def test_class_of_a_cell_includes_its_base_of_models(shell):
    shell.run_cell(
        "from models.model9 import TransformerModel\n"
        "class Mine(TransformerModel):\n"
        "    def forward(self, x):\n"
        "        return super().forward(x)\n"
    )
    assert {"UltimusBlock", "TransformerModel", "Mine"} <= set(source_pieces(shell.user_ns["Mine"]))


def test_what_has_no_source_has_no_piece():
    assert source_pieces(torch.relu) == {}


def test_source_of_a_partial_is_that_of_its_function():
    assert source_text(partial(TransformerModel, a=8)) == source_text(TransformerModel)


def test_source_of_a_decorated_function_is_its_own(write_module):
    make = write_module("decorated").make
    assert underlying(make) is make.__wrapped__
    assert "return Net()" in source_text(make)


def test_source_of_an_instance_is_that_of_its_class(write_module):
    module = write_module("instance")
    assert source_text(module.Net()) == source_text(module.Net)


def test_constant_that_is_no_plain_value_is_no_piece(write_module):
    source = "LAYERS = (int, float)\n\ndef make():\n    return LAYERS[0]()\n"
    make = write_module("layers", source).make
    assert list(source_pieces(make)) == ["make"]
    assert code_digest(make)


def test_file_is_never_executed_again(write_module, tmp_path):
    make = write_module("executed").make
    marker = Path(tmp_path / "marker")
    (tmp_path / "executed.py").write_text(f"{MODULE}\nopen({str(marker)!r}, 'w')\n")
    code_digest(make)
    assert not marker.exists()


def page_of(source: str, monkeypatch) -> str:
    """What ``show_code`` displays, as a page of nbconvert."""
    displayed = []
    monkeypatch.setattr("IPython.display.display", displayed.append)
    show_code(source)
    (markdown,) = displayed
    return markdown2html(markdown.data)


def test_code_is_shown_with_its_syntax_highlighted(monkeypatch):
    page = page_of("value = 1\n", monkeypatch)
    assert '<span class="n">value</span>' in page


def test_code_is_shown_in_a_monospaced_font(monkeypatch):
    """The code block inherits the font of what is around it."""
    page = page_of("value = 1\n", monkeypatch)
    around, _, _ = page.partition('<div class="highlight">')
    assert 'style="font-family: monospace"' in around
    assert "</div>" not in around
