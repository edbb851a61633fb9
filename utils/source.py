"""The source of a class or function: to show it, to save it, and to compare it between runs."""

import ast
import dis
import hashlib
import inspect
import linecache
import sys
import sysconfig
import textwrap
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from utils.errors import TrainingError

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


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

    Returns ``{name: source}``; constants are pieces, too. What has no source (a lambda, or code
    in C++) has no piece. Raises TrainingError: the file has changed since it was imported.
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
    source = own_source(thing)
    if not source:
        return
    module = sys.modules.get(thing.__module__)
    for name in global_names(compile(source, "<source>", "exec", dont_inherit=True)):
        value = getattr(module, name, None)
        if value is not None and is_plain(value):
            check_constant(thing, name, value)
            pieces.setdefault(name, f"{name} = {value!r}\n")
            continue
        used = inspect.unwrap(value) if callable(value) else value
        has_source = inspect.isclass(used) or inspect.isfunction(used)
        if has_source and belongs(used.__module__, thing.__module__):
            add_pieces(used, pieces, visited)
    pieces[thing.__qualname__] = source


def is_plain(value: object) -> bool:
    """Whether a value can be written to a file and read again."""
    if isinstance(value, (tuple, list)):
        return all(is_plain(part) for part in value)
    if isinstance(value, dict):
        return all(is_plain(part) for part in (*value, *value.values()))
    return value is None or isinstance(value, (bool, int, float, str))


def belongs(module: str, to: str) -> bool:
    """Whether code in ``module`` is part of a network in the module ``to``, not of a library."""
    return module in (to, "__main__") or module.split(".")[0] == "models"


def own_source(thing: Any) -> str:
    """The source of a class or function alone, with its decorators; "" if there is none.

    It is looked up by name: line numbers are wrong as soon as a line moves in an imported file.
    """
    text = text_around(thing)
    node = definition_in(text, thing.__qualname__)
    if node is None:
        return ""
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    lines = text.splitlines(keepends=True)[first - 1 : node.end_lineno]
    return textwrap.dedent("".join(lines)).rstrip("\n") + "\n"


def text_around(thing: Any) -> str:
    """The text of the file, or of the notebook's cell, that defines a class or function."""
    functions = functions_of(thing)
    if functions:
        return text_of_file(functions[0].__code__.co_filename)
    file = getattr(sys.modules.get(thing.__module__), "__file__", None)
    if file:
        return text_of_file(file)
    # A class without methods does not know its cell: the newest one that defines it.
    for name in reversed(list(linecache.cache)):
        text = "".join(linecache.getlines(name))
        if thing.__name__ in text and definition_in(text, thing.__qualname__):
            return text
    return ""


def text_of_file(name: str) -> str:
    """The text of a file as it is now, or of a notebook's cell; "" if there is none."""
    linecache.checkcache(name)
    return "".join(linecache.getlines(name))


def definition_in(text: str, qualname: str) -> Definition | None:
    """The last definition of that name in a text, such as "Net" or "make.<locals>.Net"."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return None
    found = None
    for name, node in definitions(tree, prefix=""):
        if name == qualname:
            found = node
    return found


def definitions(node: ast.AST, prefix: str) -> Iterator[tuple[str, Definition]]:
    """All classes and functions below ``node``, with their qualified names."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, DEFINITIONS):
            yield from definitions(child, prefix)
            continue
        name = prefix + child.name
        yield name, child
        inside = f"{name}." if isinstance(child, ast.ClassDef) else f"{name}.<locals>."
        yield from definitions(child, inside)


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
    """The source of ``thing`` and of what it uses, constants first; "" if there is none."""
    return text_of(source_pieces(thing))


def text_of(pieces: dict[str, str]) -> str:
    """The pieces of ``source_pieces`` as one text, constants first."""
    constants = []
    code = []
    for name, source in pieces.items():
        if source.startswith(f"{name} = "):
            constants.append(source)
        else:
            code.append(source)
    parts = ["".join(constants), *code] if constants else code
    return "\n\n".join(parts)


def code_digest(thing: Any) -> str:
    """A digest of what the source does: without comments, docstrings and layout."""
    return digest_of(source_pieces(thing), thing)


def digest_of(pieces: dict[str, str], thing: Any) -> str:
    """``code_digest`` of the pieces of ``thing``; without pieces, of its compiled functions."""
    digest = hashlib.sha256()
    for source in pieces.values():
        digest.update(ast.dump(without_docstrings(ast.parse(source))).encode())
    if not pieces:
        for function in functions_of(underlying(thing)):
            digest.update(repr(instructions_of(function.__code__)).encode())
    return digest.hexdigest()[:16]


def without_docstrings(tree: ast.Module) -> ast.Module:
    """The syntax tree without the docstrings of its classes and functions."""
    for node in ast.walk(tree):
        if not isinstance(node, DEFINITIONS):
            continue
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def check_unchanged(thing: Any) -> None:
    """Raise TrainingError if the file of a class or function has changed since it was imported.

    Python trains what it has imported, whatever the file says now.
    """
    functions = functions_of(thing)
    for path in own_files(functions):
        if not is_as_imported(thing, functions, path):
            raise TrainingError(
                f"{path.name} has changed since it was imported: restart the kernel, "
                "then run all cells, so that the new code trains."
            )


def check_constant(thing: Any, name: str, value: object) -> None:
    """Raise TrainingError if the file of ``thing`` gives the constant ``name`` another value."""
    for path in own_files(functions_of(thing)):
        assigned = assigned_value(text_of_file(str(path)), name)
        if assigned is not None and differs(assigned, value):
            raise TrainingError(
                f"{path.name} says {name} = {ast.unparse(assigned)}, but it was imported as "
                f"{value!r}: restart the kernel, then run all cells, so that the new value counts."
            )


def assigned_value(text: str, name: str) -> ast.expr | None:
    """What the last assignment outside of functions and classes assigns to ``name``."""
    value = None
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and [ast.unparse(part) for part in node.targets] == [name]:
            value = node.value
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name:
            value = node.value
    return value


def own_files(functions: list[FunctionType]) -> list[Path]:
    """The files that define some functions, without those of libraries and a notebook's cells."""
    paths = {Path(function.__code__.co_filename) for function in functions}
    return [path for path in paths if path.is_file() and not is_library(path)]


def is_library(path: Path) -> bool:
    """Whether a file belongs to an installed package or to Python itself."""
    folders = sysconfig.get_paths()
    return any(path.is_relative_to(folders[name]) for name in ("stdlib", "purelib", "platlib"))


def is_as_imported(thing: Any, functions: list[FunctionType], path: Path) -> bool:
    """Whether a file still says what was imported from it for a class or function."""
    text = text_of_file(str(path))
    try:
        file = compile(text, str(path), "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return False
    now = [(code.co_qualname, instructions_of(code)) for code in nested_codes(file)]
    for function in functions:
        code = function.__code__
        if code.co_filename == str(path) and (code.co_qualname, instructions_of(code)) not in now:
            return False
    node = definition_in(text, thing.__qualname__)
    return node is None or has_same_values(thing, node)


def has_same_values(thing: Any, node: Definition) -> bool:
    """Whether a class has the members, and its functions the defaults, that ``node`` says."""
    if not isinstance(node, ast.ClassDef):
        return has_same_defaults(thing, node)
    for part in node.body:
        if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef)):
            member = vars(thing).get(part.name)
            if member is None:
                return False
            member = inspect.unwrap(member) if callable(member) else member
            if isinstance(member, FunctionType) and not has_same_defaults(member, part):
                return False
        if isinstance(part, ast.Assign) and isinstance(part.targets[0], ast.Name):
            value = vars(thing).get(part.targets[0].id)
            if differs(part.value, value):
                return False
    return True


def has_same_defaults(function: Any, node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a function's default arguments are those of its definition."""
    values = getattr(function, "__defaults__", None) or ()
    if len(values) != len(node.args.defaults):
        return False
    return not any(map(differs, node.args.defaults, values))


def differs(node: ast.expr, value: object) -> bool:
    """Whether a constant in the source is another one than ``value``; False: it is no constant."""
    try:
        return ast.literal_eval(node) != value
    except (ValueError, TypeError):
        return False


def functions_of(thing: Any) -> list[FunctionType]:
    """The functions of a class, without those that it inherits; or the function itself."""
    members = vars(thing).values() if inspect.isclass(thing) else [thing]
    functions = [inspect.unwrap(member) for member in members if callable(member)]
    return [function for function in functions if isinstance(function, FunctionType)]


def instructions_of(code: CodeType) -> list[tuple[str, object]]:
    """The instructions of compiled code with their values, without line numbers and docstring."""
    steps: list[tuple[str, object]] = []
    for instruction in dis.get_instructions(code):
        value = instruction.argval
        if isinstance(value, CodeType):
            steps.append((instruction.opname, repr(instructions_of(value))))
        else:
            steps.append((instruction.opname, repr(value)))
    return steps


def show_source(*things: Any) -> None:
    """Show the source of classes and functions in a notebook."""
    show_code("\n\n".join(own_source(underlying(thing)) for thing in things))


def show_code(source: str) -> None:
    """Show Python code in a notebook, with its syntax highlighted."""
    from IPython.display import Markdown, display

    code = f"```python\n{source.rstrip()}\n```"
    # On a page that nbconvert makes, a code block inherits its font.
    display(Markdown(f'<div style="font-family: monospace">\n\n{code}\n\n</div>'))
