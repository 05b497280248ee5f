"""`make schema`: the tables of keys in docs/reference/config.md and the JSON schema, written from the fields of the classes."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from star.config.experiment import EXTENDS, Config, json_schema
from star.config.fields import Section
from star.config.objectives import OBJECTIVES
from star.config.scorers import Judge, Service
from star.config.sections import MethodSettings, PromptFiles, TaskSettings
from star.files import write_text

BEGIN, END = "<!-- keys: written by `make schema` -->", "<!-- end of keys -->"
_PROPER = ("Adam", "Diffusion", "Flow-")  # names that begin a summary
_HEAD = "| key | default | meaning |\n|---|---|---|\n"


def tables() -> str:
    """All keys in Markdown, a heading and a table a section."""
    top = [_row("extends", "none", EXTENDS)]
    parts = []
    for name, field in Config.model_fields.items():
        if name == "objective":
            parts += _objectives()
        elif _is_section(field.annotation):
            parts.append(f"## `{name}`: {_summary(field.annotation)}\n\n{_HEAD}{''.join(_rows(field.annotation))}")
        else:
            top.append(_row(name, _default(field), field.description))
    entries = (
        *(("scorers.services", Service), ("scorers.judges", Judge)),
        *(("tasks", TaskSettings), ("methods", MethodSettings)),
    )
    parts += [f"## `{name}.<name>`: {_summary(of)}\n\n{_HEAD}{''.join(_rows(of))}" for name, of in entries]
    return "\n".join([f"## Top level\n\n{_HEAD}{''.join(top)}", *parts])


def _objectives() -> Iterator[str]:
    """What `objective.name` chooses among, and the keys of each."""
    names = ", ".join(f"`{name}`" for name in OBJECTIVES)
    chosen = _row("name", f"`{next(iter(OBJECTIVES))}`", f"the objective: {names}; each has its own keys, below")
    yield f"## `objective`: what an update makes better\n\n{_HEAD}{chosen}"
    for name, section in OBJECTIVES.items():
        rows = [row for row in _rows(section) if not row.startswith("| `name` |")]
        yield f"### `objective: {{name: {name}}}`: {_summary(section)}\n\n{_HEAD}{''.join(rows)}"


def page(text: str) -> str:
    """A page with its tables of keys as they are now."""
    return re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: f"{BEGIN}\n\n{tables()}\n{END}", text, flags=re.DOTALL)


def _is_section(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section) and annotation is not PromptFiles


def _summary(section: type[BaseModel]) -> str:
    text = section.__doc__.strip().rstrip(".")
    return text if text.startswith(_PROPER) or not text[1].islower() else text[0].lower() + text[1:]


def _rows(section: type[BaseModel], prefix: str = "") -> list[str]:
    rows = []
    for name, field in section.model_fields.items():
        if _is_section(field.annotation):
            rows += _rows(field.annotation, f"{prefix}{name}.")
        else:
            rows.append(_row(prefix + name, _default(field), field.description))
    return rows


def _row(key: str, default: str, meaning: str) -> str:
    return f"| `{key}` | {default} | {meaning} |\n"


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "the reward's"
    if field.is_required():
        return "required"
    value = field.default
    if value is None or value == {} or value == []:
        return "none"
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    text = value if isinstance(value, str) else ", ".join(map(str, value))
    return f"`{text[:12]}` ..." if re.fullmatch("[0-9a-f]{40}", text) else f"`{text}`"


def main() -> None:
    root = Path(__file__).parents[2]
    write_text(root / "workflow/schemas/config.schema.json", json_schema())
    readme = root / "docs/reference/config.md"
    write_text(readme, page(readme.read_text(encoding="utf-8")))


if __name__ == "__main__":
    sys.exit(main())
