"""Configuration files before they are checked: YAML read strictly, `extends` followed, layers laid over each other.

A mapping is laid over a mapping key by key, anything else takes the place of what was there. `null` takes a task or method
of an earlier layer away. `reward` is one value, and so is an objective of another name.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from star.errors import InputError

OVERRIDABLE = ("rollout", "objective", "optimizer", "training", "checkpoints", "allocation")
_DEEPEST = 50
_DEFAULT_OBJECTIVE = "flow_grpo"
Document = dict[str, Any]


class Layer(NamedTuple):
    """One of the places that a configuration comes from: a file, or the command line."""

    name: str
    document: Document


class _Loader(yaml.SafeLoader):
    """The safe loader, without keys that stand twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, list | dict):
                raise yaml.MarkedYAMLError(problem="a key is a list or a mapping", problem_mark=key_node.start_mark)
            if key in seen and key_node.tag != "tag:yaml.org,2002:merge":
                raise yaml.MarkedYAMLError(problem=f"the key `{key}` stands twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, name: str) -> Any:
    """The value of a YAML text. Raises InputError, naming `name`, when it is none, has a key twice, or contains itself."""
    try:
        value = yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise InputError(f"{name}: nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist
        raise InputError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from None
    _require_shallow(value, name)
    return value


def _require_shallow(value: Any, name: str, depth: int = 0) -> None:
    """An alias can hold itself."""
    if depth > _DEEPEST:
        raise InputError(f"{name}: nested too deeply")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _require_shallow(inner, name, depth + 1)


def read(path: Path) -> Document:
    """The mapping in a configuration file. Raises InputError when it is missing, no UTF-8 text, no YAML or no mapping."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such configuration file; config/ holds the known ones") from None
    except IsADirectoryError:
        raise InputError(f"{path}: a folder; name a configuration file in it") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    document = parse_yaml(text, str(path))
    if not isinstance(document, dict):
        raise InputError(f"{path}: a configuration is a mapping of sections; see docs/reference/config.md")
    return document


def layers(paths: Iterable[Path], above: tuple[Path, ...] = ()) -> Iterator[Layer]:
    """The files of a configuration, those that a file `extends` before itself. Raises InputError as `read`, and on a circle."""
    for path in paths:
        if path.resolve() in above:
            raise InputError(f"{path}: extends itself, by way of {above[-1]}")
        document = read(path)
        extended = document.pop("extends", [])
        names = [extended] if isinstance(extended, str) else extended
        if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
            raise InputError(f"{path}: extends: name one file or a list of files, relative to this one")
        yield from layers([_extended(path, name) for name in names], (*above, path.resolve()))
        yield Layer(str(path), document)


def _extended(path: Path, name: str) -> Path:
    """The file that `path` extends: from its own folder, or where that has none from config/ of the working directory."""
    beside, known = path.parent / name, Path("config", name)
    return known if known.is_file() and not beside.exists() else beside


def merge(under: Document, over: Mapping, within: tuple[str, ...] = ()) -> Document:
    """`over` laid over `under`; neither is changed. `within` are the keys above them."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        if value is None and key in merged and within in (("tasks",), ("methods",)):
            del merged[key]
        elif isinstance(value, Mapping) and isinstance(below, dict) and not _is_one_value(key, below, value):
            merged[key] = merge(below, value, (*within, key))
        else:
            merged[key] = merge({}, value, (*within, key)) if isinstance(value, Mapping) else value
    return merged


def _is_one_value(key: str, below: Document, value: Mapping) -> bool:
    if key == "objective":
        name = below.get("name", _DEFAULT_OBJECTIVE)
        return value.get("name", name) != name
    return key == "reward"


def command_line(overrides: Sequence[str] | Mapping) -> list[tuple[tuple[str, ...], Any]]:
    """(keys, value) of `--set section.key=value` strings, values in YAML, or of the leaves of a mapping of sections.

    A string sets its key as a whole, a mapping only what it names. Raises InputError, naming the option, for a string without
    key or value, and for a value that is not YAML.
    """
    if isinstance(overrides, Mapping):
        return [leaf for key, value in overrides.items() for leaf in _leaves((str(key),), value)]
    found = []
    for override in overrides:
        key, equals, text = override.partition("=")
        keys = tuple(key.strip().split("."))
        if not equals or not all(keys):
            raise InputError(f"--set {override}: write it as section.key=value")
        if not text.strip():
            raise InputError(f"--set {override}: no value; write null for none")
        found.append((keys, parse_yaml(text, f"--set {override}")))
    return found


def set_from_command_line(document: Document, overrides: Sequence[tuple[tuple[str, ...], Any]]) -> Document:
    """The document with what the command line says, which wins over every task's and method's own.

    A key that it sets is taken out of the overrides of all tasks and methods, unless it set it there itself. Raises InputError
    when a key leads through something that is no section.
    """
    document = merge({}, document)
    for keys, value in overrides:
        for leaf, _ in _leaves(keys, value):
            if leaf[0] in OVERRIDABLE:
                for place in override_places(document):
                    _remove(place, leaf)
    for keys, value in overrides:
        _assign(document, keys, value)
    return document


def override_places(document: Document) -> Iterator[Document]:
    """The mappings of a document in which tasks and methods change other sections."""
    for section in ("tasks", "methods"):
        entries = document.get(section)
        for entry in entries.values() if isinstance(entries, dict) else ():
            place = entry.get("overrides") if section == "tasks" and isinstance(entry, dict) else entry
            if isinstance(place, dict):
                yield place


def _leaves(keys: tuple[str, ...], value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, Mapping) and value and keys[-1:] != ("reward",):
        for key, inner in value.items():
            yield from _leaves((*keys, str(key)), inner)
    else:
        yield keys, value


def _remove(place: Document, keys: tuple[str, ...]) -> None:
    *parents, last = keys
    for parent in parents:
        place = place.get(parent)
        if not isinstance(place, dict):
            return
    place.pop(last, None)


def _assign(document: Document, keys: tuple[str, ...], value: Any) -> None:
    *parents, last = keys
    place = document
    for depth, parent in enumerate(parents, start=1):
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise InputError(f"--set {'.'.join(keys)}: `{'.'.join(keys[:depth])}` is not a section")
    if value is None and tuple(parents) in (("tasks",), ("methods",)) and last in place:
        del place[last]
    elif value == {} and isinstance(place.get(last), dict):
        pass  # names nothing in it
    elif keys[-2:] == ("objective", "name") and place.get("name", _DEFAULT_OBJECTIVE) != value:
        place.clear()
        place[last] = value
    else:
        place[last] = merge({}, value) if isinstance(value, Mapping) else value
