"""The doors: no module outside of its rooms imports what lies behind a door, or decides by a name that the door decides by."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Door:
    """What only `rooms` may know: `modules` behind the door, `strings` that it decides by, `classes` of other libraries."""

    name: str
    rooms: tuple[str, ...]
    modules: tuple[str, ...] = ()
    strings: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()


DOORS = (
    Door(
        "world",
        rooms=("star/worlds", "star/pretraining"),
        modules=("star.worlds.miniature", "star.worlds.coco"),
        strings=("miniature", "coco"),
    ),
)
PRETRAINING = Door("pretraining", rooms=("star/pretraining", "star/cli.py"), modules=("star.pretraining",))
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "star").rglob("*.py"))


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def strings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """String constants; those of Literal[...] declare what a key may be and decide nothing."""
    declared = {
        id(constant)
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "Literal"
        for constant in ast.walk(node.slice)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in declared:
            yield node.lineno, node.value


def names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            yield node.lineno, node.id if isinstance(node, ast.Name) else node.attr


def trespasses(source: str, door: Door) -> list[str]:
    """What a module outside of the rooms knows and should not, with its lines."""
    tree = ast.parse(source)
    found = [(n, name) for n, name in imported(tree) if any(f"{name}.".startswith(f"{module}.") for module in door.modules)]
    found += [(n, name) for n, name in imported(tree) if name.rpartition(".")[2] in door.classes]
    found += [(n, text) for n, text in strings(tree) if text in (*door.strings, *door.modules, *door.classes)]
    found += [(n, name) for n, name in names(tree) if name in door.classes]
    return [f"line {n}: {name}" for n, name in sorted(found)]


@pytest.mark.parametrize("door", [*DOORS, PRETRAINING], ids=lambda door: door.name)
@pytest.mark.parametrize("module", MODULES)
def test_what_lies_behind_a_door_is_known_in_its_rooms_alone(module: str, door: Door) -> None:
    if not any(module == room or module.startswith(f"{room}/") for room in door.rooms):
        assert trespasses((ROOT / module).read_text(encoding="utf-8"), door) == []


def test_a_trespass_is_seen() -> None:
    door = Door("model", rooms=(), modules=("star.models.sd3",), strings=("sd3",), classes=("FluxPipeline",))
    for source in (
        "import star.models.sd3",
        "from star.models.sd3 import SD3",
        "from star.models import sd3",
        "from diffusers import FluxPipeline as Pipe",
        "pipe = diffusers.FluxPipeline()",
        "if name == 'sd3': pass",
        "make = {'sd3': 1}[name]",
        "load('star.models.sd3')",
    ):
        assert len(trespasses(source, door)) == 1, source
    for source in (
        "from star.models.door import load_model",
        "name: Literal['sd3', 'flux']",
        "'sd35'",
        "import star.models.sd3x",
    ):
        assert trespasses(source, door) == [], source
