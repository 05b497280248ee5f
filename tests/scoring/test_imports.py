"""The rooms of scoring hang together without a circle, imports inside functions counted too."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

SCORING = Path(__file__).parents[2] / "star/scoring"


def test_no_module_of_scoring_reaches_itself() -> None:
    modules = {path.stem for path in SCORING.glob("*.py")}
    imports: dict[str, set[str]] = {}
    for path in SCORING.glob("*.py"):
        names = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "star.scoring":
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("star.scoring."):
                names.add(node.module.split(".")[2])
        imports[path.stem] = names & modules
    order = list(TopologicalSorter(imports).static_order())  # raises CycleError where there is a circle
    places = [order.index(name) for name in ("detection", "rules", "geneval", "scorer", "guards", "folder")]
    assert places == sorted(places)
