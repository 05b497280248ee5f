"""Keys of earlier versions: refused with their new names where a file is read, and rewritten by `star config --migrate`.

Every rule is a key with what became of it. The places where a key can stand are the file itself and what its tasks and methods
change.
"""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from star.config.document import Document, override_places
from star.config.sections import SETS

_OPTIMIZER = ("learning_rate", "betas", "weight_decay", "max_grad_norm", "update_norm")
_OBJECTIVE = ("clip_range", "location_clip_range", "advantage_clip")
_DETECTOR = ("model", "revision", "size", "batch", "precision", "golden")
_PICKSCORE = ("model", "revision", "processor", "processor_revision")
RENAMED = {
    **{f"training.{key}": f"optimizer.{key}" for key in _OPTIMIZER},
    **{f"training.{key}": f"objective.{key}" for key in _OBJECTIVE},
    "training.kl_beta": "objective.kl_weight",
    "training.checkpoint_every": "checkpoints.every",
    "training.save_every": "checkpoints.save_every",
    "training.keep_states": "checkpoints.keep_states",
    "allocation.objective": "objective.form",
    "scorers.detector": "scorers.geneval.detector",
    **{f"scorers.detector_{key}": f"scorers.geneval.{key}" for key in _DETECTOR},
    **{f"scorers.color_{key}": f"scorers.geneval.color_{key}" for key in ("model", "revision")},
    **{f"scorers.ocr_{key}": f"scorers.ocr.{key}" for key in ("engine", "mode", "size", "weights")},
    **{f"scorers.pickscore_{key}": f"scorers.pickscore.{key}" for key in _PICKSCORE},
    "scorers.pickscore_dtype": "scorers.pickscore.precision",
}
_CONTROLS = ("random", "shuffled")  # were sources
_MINIATURE_TASKS = dict(zip(SETS["coco"], SETS["miniature"][:3], strict=True))  # their names until they were free


def new_task_name(task: str, world: str | None) -> str | None:
    """What a task of an earlier version's name is called now; None for others."""
    return _MINIATURE_TASKS.get(task) if world == "miniature" else None


def find_old(document: Document) -> str | None:
    """The first key or value of an earlier version, in words with its new name; None where there is none."""
    for place in (document, *override_places(document)):
        for old, new in RENAMED.items():
            section, key = old.split(".")
            if key in _mapping(place, section):
                return f"{old}: is now {new}"
        allocation = _mapping(place, "allocation")
        if allocation.get("source") in _CONTROLS:
            return f"allocation.source: {allocation['source']} is now source: attention with control: {allocation['source']}"
        if "inverse" in allocation:
            return "allocation.inverse: is now allocation.control: inverse"
    if "files" in _mapping(document, "prompts"):
        return "prompts.files: is now tasks.<name>.prompts"
    return None


def migrate(document: Document) -> Document:
    """A document of an earlier version in today's keys; one of today as it is."""
    document = deepcopy(document)
    for place in (document, *list(override_places(document))):
        _rename(place)
        _separate_control(place)
    files = _mapping(document, "prompts").pop("files", {})
    _name_tasks(document, files if isinstance(files, dict) else {})
    return document


def _mapping(place: Document, key: str) -> Document:
    value = place.get(key)
    return value if isinstance(value, dict) else {}


def _rename(place: Document) -> None:
    for old, new in RENAMED.items():
        section, key = old.split(".")
        if key in _mapping(place, section):
            value, target = place[section].pop(key), place
            *parents, last = new.split(".")
            for parent in parents:
                target = target.setdefault(parent, {})
            target[last] = value
    for section in {old.split(".")[0] for old in RENAMED}:
        if place.get(section) == {}:
            del place[section]


def _separate_control(place: Document) -> None:
    allocation = _mapping(place, "allocation")
    if allocation.get("source") in _CONTROLS:
        allocation |= {"source": "attention", "control": allocation["source"]}
    if "inverse" in allocation:
        inverse = allocation.pop("inverse")
        if inverse:
            allocation["control"] = "inverse"


def _name_tasks(document: Document, files: dict[str, Any]) -> None:
    """Give tasks their prompts; in the miniature a task that was called after a benchmark gets its own name."""
    world = _mapping(document, "prompts").get("world")
    tasks = _mapping(document, "tasks")
    for name in list(tasks):
        entry = tasks.pop(name)
        if isinstance(entry, dict) and "prompts" not in entry and name in _MINIATURE_TASKS:
            of_set = new_task_name(name, world) or name
            entry = {"prompts": files[name] | {"set": of_set} if name in files else of_set, **entry}
            name = of_set
        tasks[name] = entry
    for method in _mapping(document, "methods").values():
        if isinstance(method, dict) and isinstance(method.get("tasks"), list):
            method["tasks"] = [new_task_name(task, world) or task for task in method["tasks"]]


def said(old: Document, new: Document) -> Iterator[str]:
    """The keys that `migrate` took away and those that it brought, one line each."""
    before, after = dict(_flat(old)), dict(_flat(new))
    yield from (f"- {key}: {value}" for key, value in before.items() if after.get(key, ...) != value)
    yield from (f"+ {key}: {value}" for key, value in after.items() if before.get(key, ...) != value)


def _flat(value: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, (*keys, str(key)))
    else:
        yield ".".join(keys), value
