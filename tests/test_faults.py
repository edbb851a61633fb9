"""The README's "If something fails" quotes what the program prints."""

import ast
import re

from tests.conftest import ROOT

SOURCES = [
    ROOT / "main.py",
    *(path for folder in ("utils", "tools") for path in (ROOT / folder).rglob("*.py")),
]


def test_quotations_are_strings_of_the_program():
    """An "…" stands for a part that varies."""
    nodes = [node for path in SOURCES for node in ast.walk(ast.parse(path.read_text("utf-8")))]
    texts = [
        node.value
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    section = (
        (ROOT / "README.md").read_text("utf-8").split("<summary>If something fails</summary>")[1]
    )
    quotations = re.findall("“([^”]+)”", section)
    assert len(quotations) >= 10
    for piece in (piece.strip() for quotation in quotations for piece in quotation.split("…")):
        assert any(piece in text for text in texts), piece
