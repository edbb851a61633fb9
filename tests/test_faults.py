"""The README's "If something fails" quotes what the program prints."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = [ROOT / "main.py", *(path for folder in ("utils", "tools") for path in (ROOT / folder).rglob("*.py"))]


def program_texts() -> list[str]:
    """All strings of the program, with "…" for the parts that vary."""
    texts = []
    for node in (node for path in SOURCES for node in ast.walk(ast.parse(path.read_text("utf-8")))):
        if isinstance(node, ast.JoinedStr):
            texts.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.append(node.value)
    return texts


def test_quotations_are_strings_of_the_program():
    texts = program_texts()
    section = (ROOT / "README.md").read_text("utf-8").split("<summary>If something fails</summary>")[1]
    quotations = re.findall("“([^”]+)”", section)
    assert 10 <= len(quotations) <= 15
    for piece in (piece.strip() for quotation in quotations for piece in quotation.split("…")):
        assert any(piece in text for text in texts), piece
