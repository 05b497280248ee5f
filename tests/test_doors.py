"""The doors and floors: who may know what lies behind a door, and who may import whom.

No module outside of its rooms imports what lies behind a door, or holds a name that the door decides by. Rooms import
downwards, and no modules import each other in a circle.
"""

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
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
        # the configuration declares which sets a world has, and what became of its earlier tasks
        rooms=(
            "star/worlds",
            "star/pretraining",
            "star/config/sections.py",
            "star/config/scorers.py",
            "star/config/migrate.py",
        ),
        modules=("star.worlds.miniature", "star.worlds.coco"),
        strings=("miniature", "coco"),
    ),
    Door(
        "model",
        rooms=("star/models", "star/pretraining"),
        modules=("star.models.sd3", "star.models.flux", "star.models.qwen_image", "star.models.z_image", "star.models.flux2"),
        strings=("sd3", "flux", "qwen", "zimage"),
        classes=(
            *("StableDiffusion3Pipeline", "SD3Transformer2DModel", "FluxPipeline", "FluxTransformer2DModel"),
            *("QwenImagePipeline", "QwenImageTransformer2DModel", "ZImagePipeline", "ZImageTransformer2DModel"),
            *("Flux2KleinPipeline", "Flux2Transformer2DModel"),
        ),
    ),
    Door(
        "objective",
        rooms=("star/objectives", "star/config"),
        modules=tuple(f"star.objectives.{name}" for name in ("flow_grpo", "guard", "nft", "pepg", "awm")),
        strings=("nft", "pepg", "awm"),
    ),
    Door(
        "name of an objective",
        # where results are read, `flow_grpo` is a method and `guard` a column; `pepg` is also a form of that objective
        rooms=("star/objectives/door.py", "star/config", "star/analysis", "star/evidence", "star/export"),
        strings=("flow_grpo", "guard", "nft", "awm"),
    ),
)
PRETRAINING = Door("pretraining", rooms=("star/pretraining", "star/cli.py"), modules=("star.pretraining",))
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "star").rglob("*.py"))


@cache
def parsed(source: str) -> ast.Module:
    """A module's syntax tree; many tests look at the same ones."""
    return ast.parse(source)


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
    tree = parsed(source)
    found = [(n, name) for n, name in imported(tree) if any(f"{name}.".startswith(f"{module}.") for module in door.modules)]
    found += [(n, name) for n, name in imported(tree) if name.rpartition(".")[2] in door.classes]
    found += [(n, text) for n, text in strings(tree) if text in (*door.strings, *door.modules, *door.classes)]
    found += [(n, name) for n, name in names(tree) if name in door.classes]
    return [f"line {n}: {name}" for n, name in sorted(found)]


@pytest.mark.parametrize("door", [*DOORS, PRETRAINING], ids=lambda door: door.name)
def test_what_lies_behind_a_door_is_known_in_its_rooms_alone(door: Door) -> None:
    outside = [m for m in MODULES if not any(m == room or m.startswith(f"{room}/") for room in door.rooms)]
    found = {module: trespasses((ROOT / module).read_text(encoding="utf-8"), door) for module in outside}
    assert {module: lines for module, lines in found.items() if lines} == {}


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


# Rooms and modules of star from the lowest floor to the highest; a module that is named stands above the rest of its room.
FLOORS = (
    ("errors", "files", "code", "config", "layout", "lock_owner", "runtime"),
    ("prompts",),
    ("flow", "allocation", "worlds", "hub"),
    ("models", "config.key"),
    ("scoring", "objectives"),
    ("prompts.make", "prompts.show", "hub.sources", "hub.fetch"),
    ("training", "credit", "sampling", "analysis", "report", "evidence", "compare", "export", "doctor", "tracking"),
    ("pretraining", "kit"),
    ("cli",),
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}


def named(path: str) -> str:
    """star/config/key.py -> star.config.key."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


PATHS = {named(path): ROOT / path for path in MODULES}


def floor(module: str) -> int:
    """The floor of the most particular name that the module has."""
    names = module.removeprefix("star.").split(".")
    return next(FLOOR[name] for n in range(len(names), 0, -1) if (name := ".".join(names[:n])) in FLOOR)


def imports(source: str, *, when_loaded: bool, known: Iterable[str] = PATHS) -> set[str]:
    """The modules of star that a source imports, but for those that only type checkers see; `when_loaded`: not in functions."""
    tree = parsed(source)
    aside = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    if when_loaded:
        aside += [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    unseen = {id(inner) for node in aside for inner in ast.walk(node)}
    found = set()
    for node in ast.walk(tree):
        if id(node) not in unseen:
            for _, name in imported(node) if isinstance(node, ast.Import | ast.ImportFrom) else ():
                module = name if name in known else name.rpartition(".")[0]
                found |= {module} & set(known) - {"star"}
    return found


def test_rooms_import_downwards() -> None:
    upwards = [
        (module, other)
        for module, path in PATHS.items()
        if module != "star"
        for other in imports(path.read_text(encoding="utf-8"), when_loaded=False)
        if floor(other) > floor(module)
    ]
    assert upwards == []


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Some modules that import each other in a circle; none is best."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module: imports(path.read_text(encoding="utf-8"), when_loaded=True) for module, path in PATHS.items()}
    assert circle(graph) == []


def test_no_rooms_of_a_floor_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for module, path in PATHS.items():
        for other in imports(path.read_text(encoding="utf-8"), when_loaded=False):
            one, two = (next(n for n in (m.removeprefix("star."), m.split(".")[1]) if n in FLOOR) for m in (module, other))
            if one != two:
                graph.setdefault(one, set()).add(two)
    assert circle(graph) == []


def test_an_arrow_upwards_and_a_circle_are_seen() -> None:
    known = ("star.cli", "star.config", "star.config.key")
    for source, found in (
        ("import star.cli", {"star.cli"}),
        ("from star import cli", {"star.cli"}),
        ("from star.config import load", {"star.config"}),
        ("from star.config.key import digest", {"star.config.key"}),
        ("if TYPE_CHECKING:\n    from star import cli", set()),
    ):
        assert imports(source, when_loaded=False, known=known) == found
    inside = "def main():\n    from star import cli"
    assert imports(inside, when_loaded=False, known=known) == {"star.cli"} and not imports(
        inside, when_loaded=True, known=known
    )
    assert floor("star.cli") > floor("star.config.key") > floor("star.hub.lock") > floor("star.config.sections")
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})) == {"a", "b", "c"}


def private(source: str) -> list[str]:
    """The names with one leading underscore that a test takes from elsewhere, with their lines.

    A class's own (`self._x`) are no one else's. `_replace` and the like belong to what a named tuple offers in public; the
    packing of FLUX.2's latents is diffusers', which has no public name for it.
    """
    offered = {"_replace", "_asdict", "_fields", "_make", "_patchify_latents", "_unpatchify_latents"}

    def hidden(name: str) -> bool:
        return name.startswith("_") and not name.startswith("__") and name not in offered

    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [name for _, name in imported(node) if name.startswith("star.")]
        elif isinstance(node, ast.Attribute):
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            names = [] if own else [node.attr]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("setattr", "getattr", "delattr"):
            names = [a.value for a in node.args[:2] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        else:
            names = []
        found += [f"line {node.lineno}: {name}" for name in names if any(hidden(part) for part in name.split("."))]
    return found


def test_tests_use_no_private_names() -> None:
    found = {path.name: private(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "tests").rglob("*.py"))}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_a_private_name_is_seen() -> None:
    for source in (
        "from star.code import _path",
        "import star._rooms",
        "code._path('star.cli')",
        "pool._executor._processes.values()",
        "monkeypatch.setattr(code, '_path', 1)",
        "monkeypatch.setattr('star.code._path', 1)",
        "getattr(code, '_path')",
    ):
        assert private(source), source
    for source in ("self._x = 1", "pair._replace(left=1)", "row['_step']", "code.__doc__", "from os import _exit"):
        assert private(source) == [], source
