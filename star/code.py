"""Which code made a result: a digest of the modules that a stage runs, kept beside what the stage writes.

Formatting, comments and docstrings do not count. Neither do modules that pass settings, paths and files along: settings have
keys of their own.
"""

import ast
import hashlib
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from star.files import write_text

FILE = "code.txt"
PACKAGE = Path(__file__).parent
_WITHOUT_NUMBERS = {"cli", "code", "config", "doctor", "errors", "files", "hub", "layout", "runtime", "tracking"}


def record(folder: Path, stage: str, fresh: bool) -> None:
    """Add the digest of a stage's code to <folder>/code.txt; `fresh` where nothing of before is kept there.

    A stage that goes on where older code left off adds a line, so the file names every code that made what lies beside it.
    """
    file = folder / FILE
    known = [] if fresh or not file.exists() else file.read_text(encoding="utf-8").split()
    if digest(stage) not in known:
        write_text(file, "".join(f"{line}\n" for line in [*known, digest(stage)]))


@cache
def digest(stage: str) -> str:
    """The first 12 hex digits of the SHA-256 of a module, `star.training.train` say, and of all of star that it imports."""
    trees = {name: _canonical(tree) for name, tree in sorted(_reached(stage).items())}
    return hashlib.sha256(json.dumps(trees).encode()).hexdigest()[:12]


def _reached(stage: str) -> dict[str, ast.Module]:
    """The syntax trees of what a module imports or names anywhere in its text, itself included, directly or through others."""
    reached: dict[str, ast.Module] = {}
    waiting = [stage]
    while waiting:
        name = waiting.pop()
        path = _path(name)
        if name in reached or path is None:
            continue
        reached[name] = ast.parse(path.read_bytes())
        waiting += _imported(reached[name])
    return reached


def _path(name: str) -> Path | None:
    """The file of a module of star that has to do with numbers; None for any other name."""
    if not re.fullmatch(r"star(\.\w+)+", name):
        return None
    _, *parts = name.split(".")
    if parts[0] in _WITHOUT_NUMBERS:
        return None
    place = PACKAGE.joinpath(*parts)
    files = (place.with_suffix(".py"), place / "__init__.py")
    return next((file for file in files if file.is_file()), None)


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):  # a door names its modules in strings
            yield node.value.partition(":")[0]


def _canonical(node: object) -> object:
    """A syntax tree without places and docstrings, the same under every version of Python, as JSON."""
    if isinstance(node, list):
        return [_canonical(item) for item in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node, False):
        fields["body"] = node.body[1:]
    return [type(node).__name__, {name: _canonical(value) for name, value in fields.items() if value not in (None, [])}]
