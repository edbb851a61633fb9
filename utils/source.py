"""The source of a class or function: to show it, to save it, and to compare it between runs."""

import ast
import dis
import hashlib
import inspect
import sys
import textwrap
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from utils.errors import TrainingError

PLAIN = (bool, int, float, str, tuple)


def underlying(thing: Any) -> Any:
    """The class or function behind a ``functools.partial``, a decorator or an instance."""
    while isinstance(thing, partial):
        thing = thing.func
    thing = inspect.unwrap(thing)
    if inspect.isclass(thing) or inspect.isroutine(thing):
        return thing
    return type(thing)


def source_pieces(thing: Any) -> dict[str, str]:
    """The source of ``thing`` and, before it, of what it uses from its module and from models/.

    Returns ``{name: source}``; constants are pieces, too. What has no source (a class typed into a
    plain interpreter, or one of C++) has no piece. Raises TrainingError: the file has changed since
    it was imported.
    """
    pieces: dict[str, str] = {}
    add_pieces(underlying(thing), pieces, visited=set())
    return pieces


def add_pieces(thing: Any, pieces: dict[str, str], visited: set[int]) -> None:
    """Add the source of a class or function to ``pieces``, after that of what it uses."""
    if id(thing) in visited:
        return
    visited.add(id(thing))
    check_unchanged(thing)
    try:
        source = textwrap.dedent(inspect.getsource(thing))
        names = global_names(compile(source, "<source>", "exec", dont_inherit=True))
    except (OSError, TypeError, SyntaxError):
        return
    module = sys.modules.get(thing.__module__)
    for name in names:
        value = getattr(module, name, None)
        if isinstance(value, PLAIN):
            pieces.setdefault(name, f"{name} = {value!r}\n")
            continue
        used = inspect.unwrap(value) if callable(value) else value
        has_source = inspect.isclass(used) or inspect.isfunction(used)
        if has_source and belongs(used.__module__, thing.__module__):
            add_pieces(used, pieces, visited)
    pieces[thing.__qualname__] = source


def belongs(module: str, to: str) -> bool:
    """Whether code in ``module`` is part of a network in the module ``to``, not of a library."""
    return module in (to, "__main__") or module.split(".")[0] == "models"


def global_names(code: CodeType) -> list[str]:
    """The names that compiled code looks up outside of itself, in their order."""
    names: dict[str, None] = {}
    for part in nested_codes(code):
        for instruction in dis.get_instructions(part):
            if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                names[instruction.argval] = None
    return [name for name in names if not name.startswith("__")]


def nested_codes(code: CodeType) -> Iterator[CodeType]:
    """``code`` and the code of all functions and classes inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from nested_codes(constant)


def source_text(thing: Any) -> str:
    """The pieces of ``source_pieces``, constants first; "" if there is no source."""
    constants = []
    code = []
    for name, source in source_pieces(thing).items():
        if source.startswith(f"{name} = "):
            constants.append(source)
        else:
            code.append(source)
    parts = ["".join(constants), *code] if constants else code
    return "\n\n".join(parts)


def code_digest(thing: Any) -> str:
    """A digest of what the source does: without comments, docstrings and layout."""
    digest = hashlib.sha256()
    for source in source_pieces(thing).values():
        digest.update(ast.dump(without_docstrings(ast.parse(source))).encode())
    return digest.hexdigest()[:16]


def without_docstrings(tree: ast.Module) -> ast.Module:
    """The syntax tree without the docstrings of its classes and functions."""
    for node in ast.walk(tree):
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def check_unchanged(thing: Any) -> None:
    """Raise TrainingError if the file of a class or function has changed since it was imported.

    Python trains what it has imported, whatever the file says now.
    """
    for function in functions_of(thing):
        path = Path(function.__code__.co_filename)
        if not path.is_file():  # a cell of a notebook
            continue
        try:
            file = compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
        except (OSError, SyntaxError, ValueError):
            file = None
        codes = {code.co_qualname: code for code in nested_codes(file)} if file else {}
        now = codes.get(function.__code__.co_qualname)
        if now is None or what_it_does(now) != what_it_does(function.__code__):
            raise TrainingError(
                f"{path.name} has changed since it was imported: restart the kernel, "
                "then run all cells, so that the new code trains."
            )


def functions_of(thing: Any) -> list[FunctionType]:
    """The functions of a class, without those that it inherits; or the function itself."""
    members = vars(thing).values() if inspect.isclass(thing) else [thing]
    functions = [inspect.unwrap(member) for member in members if callable(member)]
    return [function for function in functions if isinstance(function, FunctionType)]


def what_it_does(code: CodeType) -> tuple:
    """What compiled code computes, without line numbers and docstring."""
    constants = list(code.co_consts)
    if constants and isinstance(constants[0], str):  # a docstring, if there is one
        constants = constants[1:]
    return (
        code.co_code,
        code.co_names,
        code.co_varnames,
        [what_it_does(c) if isinstance(c, CodeType) else repr(c) for c in constants],
    )


def show_source(*things: Any) -> None:
    """Show the source of classes and functions in a notebook."""
    show_code("\n\n".join(inspect.getsource(underlying(thing)) for thing in things))


def show_code(source: str) -> None:
    """Show Python code in a notebook, with its syntax highlighted."""
    from IPython.display import Markdown, display

    display(Markdown(f"```python\n{source.rstrip()}\n```"))
