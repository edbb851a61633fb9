"""The README's "If something fails" quotes what the program prints."""

import ast
import re

import pytest

from tests.conftest import ROOT


def strings_of_the_program() -> list[str]:
    """All string literals, and the constant parts of f-strings."""
    sources = [ROOT / "main.py", *(ROOT / "utils").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]
    strings = []
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                strings.append(node.value)
    return strings


def quotations_of_the_readme() -> list[str]:
    readme = (ROOT / "README.md").read_text("utf-8")
    _, _, section = readme.partition("<summary>If something fails</summary>")
    section, _, _ = section.partition("</details>")
    return re.findall("“([^”]+)”", section)


STRINGS = strings_of_the_program()
QUOTATIONS = quotations_of_the_readme()


def test_readme_explains_messages():
    assert len(QUOTATIONS) >= 10


@pytest.mark.parametrize("quotation", QUOTATIONS)
def test_quotation_is_printed_by_the_program(quotation):
    """An "…" stands for a part that varies."""
    for piece in quotation.split("…"):
        assert any(piece.strip() in string for string in STRINGS), piece
