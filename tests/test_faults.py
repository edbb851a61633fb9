"""FAULTS.md is correct: its tests exist, and the program contains the messages that it quotes."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"\| (?P<fault>[^|]+) \| (?P<sees>[^|]+) \| `(?P<file>test_\w+\.py)::(?P<test>test_\w+)` \|")


def rows() -> list[re.Match]:
    lines = (ROOT / "FAULTS.md").read_text("utf-8").splitlines()
    return [ROW.fullmatch(line) or pytest.fail(line) for line in lines if line.startswith("| ") and "`test_" in line]


def test_the_table_names_tests_that_exist():
    assert len(rows()) >= 40
    for row in rows():
        assert f"def {row['test']}(" in (ROOT / "tests" / row["file"]).read_text("utf-8"), row["test"]


def test_the_table_quotes_the_program():
    """The parts of each quoted message, between the dots, are strings of the program."""
    texts = []
    for path in (
        ROOT / "main.py",
        *(path for name in ("utils", "models", "tools") for path in (ROOT / name).rglob("*.py")),
    ):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                texts.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
    for row in rows():
        for quoted in re.findall("“([^”]+)”", row["sees"]):
            for piece in filter(None, (piece.strip() for piece in quoted.split("…"))):
                assert any(piece in text for text in texts), piece
