"""A configuration checked whole before any work, and what one (task, method) of it uses.

`load` reads files and the command line, `run_settings` resolves a run: the task's overrides are laid over the file's sections,
then the method's. What the command line says was set in the document before, and wins over both.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator, model_validator

from star.config import document as documents
from star.config.allocation import Allocation
from star.config.document import OVERRIDABLE, Document, Layer
from star.config.fields import Place, Section
from star.config.migrate import find_old, new_task_name
from star.config.objectives import OBJECTIVES, FlowGrpo, Objective
from star.config.scorers import Scorer, Scorers
from star.config.sections import (
    SETS,
    Checkpoints,
    Compute,
    Evaluation,
    MethodSettings,
    Optimizer,
    PolicySettings,
    PromptFiles,
    Prompts,
    Reward,
    Rollout,
    TaskSettings,
    Tracking,
    Training,
)
from star.errors import InputError

_RESERVED = ("prompts", "logs", "benchmarks", "tables", "figures", "evidence", "credit")  # folders beside the tasks'
_SHELL_SAFE = re.compile(r"[\w./+@=,-]+")  # what no shell splits, and Snakemake reads as it stands
_SHARED = ("prompts", "policy", "compute", "tracking", "evaluation", "scorers")


class RunSettings(Section):
    """Everything that one training of one method on one task, and its test, depend on."""

    task: str
    method: str
    prompts: Prompts
    prompts_set: PromptFiles
    reward: Reward
    report: list[Scorer]
    policy: PolicySettings
    rollout: Rollout
    objective: Objective
    optimizer: Optimizer
    training: Training
    checkpoints: Checkpoints
    allocation: Allocation
    compute: Compute
    tracking: Tracking = Tracking()
    evaluation: Evaluation
    scorers: Scorers

    @model_validator(mode="after")
    def _locations_need_a_map(self) -> "RunSettings":
        if getattr(self.objective, "form", None) == "per_location" and self.allocation.source == "none":
            raise ValueError("objective.form: per_location needs a map; allocation.source: uniform is the map of ones")
        return self


class Config(Section):
    """A whole experiment."""

    experiment: str = Field(
        pattern=r"^[a-z0-9][a-z0-9-]*$",
        description="name of the folder below `results` and of the MLflow experiments; lower case, digits, hyphens",
    )
    results: Place = Field("results", description="folder for everything that is produced")
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**63)]], Field(min_length=1)] = Field(
        description="training seeds, each once; every (task, method) is trained with each"
    )
    prompts: Prompts
    policy: PolicySettings
    rollout: Rollout = Rollout()
    objective: Objective = FlowGrpo()
    optimizer: Optimizer = Optimizer()
    training: Training
    checkpoints: Checkpoints
    allocation: Allocation = Allocation()
    compute: Compute = Compute()
    tracking: Tracking = Tracking()
    evaluation: Evaluation = Evaluation()
    scorers: Scorers = Scorers()
    tasks: dict[str, TaskSettings] = Field(
        min_length=1,
        description="what is trained and tested, by names of your choice (lower case, digits, `_`, `-`): see below",
    )
    methods: dict[str, MethodSettings] = Field(
        min_length=1, description="what is compared, by names of your choice (letters, digits, `_`, `-`): see below"
    )

    @field_validator("results")
    @classmethod
    def _results_lie_where_a_shell_finds_them(cls, results: str) -> str:
        if results.startswith("-"):
            raise ValueError(f"{results!r} would be taken for an option; write ./{results}")
        if not _SHELL_SAFE.fullmatch(results):
            raise ValueError(f"{results!r} has a letter that a shell would take apart; use letters, digits and ./_-+@=,")
        return results

    @field_validator("seeds")
    @classmethod
    def _each_seed_once(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"{max(seeds, key=seeds.count)} stands twice; every seed is trained once")
        return seeds

    @field_validator("tasks")
    @classmethod
    def _tasks_are_folders(cls, tasks: dict[str, TaskSettings]) -> dict[str, TaskSettings]:
        for name in tasks:
            if not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
                raise ValueError(f"{name!r} is no name of a task: lower case letters, digits, _ and -, a letter first")
            if name in _RESERVED:
                raise ValueError(f"{name!r} is the name of another folder of the results; call the task something else")
        return tasks

    @field_validator("methods")
    @classmethod
    def _methods_are_folders(cls, methods: dict[str, MethodSettings]) -> dict[str, MethodSettings]:
        for name in methods:
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
                raise ValueError(f"{name!r} is no name of a method: letters, digits, _ and -, a letter first")
            if name == "base":
                raise ValueError("`base` names the untrained model; call the method something else")
        return methods

    @model_validator(mode="after")
    def _every_run_is_valid(self) -> "Config":
        for name, method in self.methods.items():
            for task in method.tasks or ():
                if task not in self.tasks:
                    raise ValueError(f"methods.{name}.tasks: no `{task}` under tasks; it has {', '.join(self.tasks)}")
        for name, task in self.tasks.items():
            _require_remotes(name, task, self.scorers)
            _require_prompts(name, task.prompts, self.prompts.world, self.evaluation.split)
            if not methods_of(self, name):
                raise ValueError(f"tasks.{name}: no method is for it; see methods.<name>.tasks")
            for method in methods_of(self, name):
                run_settings(self, name, method)
        return self


def _require_remotes(task: str, settings: TaskSettings, scorers: Scorers) -> None:
    """Services and judges that a task names are configured."""
    for scorer in (*settings.reward, *settings.report):
        kind, _, name = scorer.partition(":")
        if kind in ("service", "judge") and scorers.remote(scorer) is None:
            raise ValueError(f"tasks.{task}: {scorer} is not configured; add scorers.{kind}s.{name} with its `url`")


def _require_prompts(task: str, prompts: PromptFiles, world: str, tested: str) -> None:
    if prompts.set is not None and prompts.set not in SETS[world]:
        raise ValueError(
            f"tasks.{task}.prompts: no set `{prompts.set}` in the world `{world}`; it has {', '.join(SETS[world])}"
        )
    if prompts.set is None:
        for split in ("train", tested):
            if getattr(prompts, split) is None:
                raise ValueError(f"tasks.{task}.prompts.{split}: no file; name one, or the `set` that has the split")


def methods_of(config: Config, task: str) -> list[str]:
    """The methods that are trained on a task, in the configuration's order."""
    return [name for name, method in config.methods.items() if method.tasks is None or task in method.tasks]


def require_task(config: Config, task: str) -> None:
    """Raise InputError when the configuration has no such task; the miniature's earlier names are told their new ones."""
    if task not in config.tasks:
        new = new_task_name(task, config.prompts.world)
        renamed = f"; `{task}` is now called `{new}`" if new in config.tasks else ""
        raise InputError(f"tasks: no `{task}` in the configuration; it has {', '.join(config.tasks)}{renamed}")


def main_scorer(config: Config, task: str) -> str:
    """The scorer whose scores are the task's column in tables and figures."""
    return config.tasks[task].report[0]


def evaluated_policy(settings: Config | RunSettings) -> PolicySettings:
    """The section `policy` as tests use it: at the evaluation's resolution."""
    resolution = settings.evaluation.resolution
    return settings.policy if resolution is None else settings.policy.model_copy(update={"resolution": resolution})


def published_epochs(settings: RunSettings) -> set[int]:
    """The epochs whose checkpoints are kept to be sampled and scored: every `checkpoints.every`, and the last."""
    every, last = settings.checkpoints.every, settings.training.epochs
    return {*range(every, last + 1, every), last}


def run_settings(config: Config, task: str, method: str) -> RunSettings:
    """The settings of one task and method. Raises InputError when the configuration has no such task or method."""
    require_task(config, task)
    if method not in config.methods and method != "base":
        raise InputError(f"methods: no `{method}` in the configuration; it has {', '.join(config.methods)}")
    if method != "base" and method not in methods_of(config, task):
        raise InputError(f"methods.{method}.tasks: `{method}` is not for `{task}`; add it there, or choose another method")
    own = config.tasks[task]
    fixed = {"task": task, "method": method, "prompts_set": own.prompts, "reward": own.reward, "report": own.report}
    fixed |= {section: getattr(config, section) for section in _SHARED}
    changes = config.methods[method].model_dump(exclude={"tasks"}) if method in config.methods else {}
    sections = config.model_dump(include=set(OVERRIDABLE))
    settings = None
    for where, overrides in ((f"tasks.{task}.overrides", own.overrides), (f"methods.{method}", changes)):
        for section in overrides:
            if section not in OVERRIDABLE:
                raise ValueError(f"{where}.{section}: only {', '.join(OVERRIDABLE)} can be overridden")
        sections = documents.merge(sections, overrides)
        try:
            settings = RunSettings(**fixed, **sections)
        except ValidationError as error:
            raise ValueError(f"{where}.{_first(error)[1]}") from None
    return settings


def load(paths: str | Path | Iterable[str | Path], overrides: Sequence[str] | Mapping = ()) -> Config:
    """The configuration of one file, or of several, of which later ones lie over earlier ones.

    `overrides` is the command line: `section.key=value` strings, values in YAML, or a mapping of sections. Raises InputError,
    naming file and key, when a file is missing or not YAML, or a key is unknown, wrong or of an earlier version.
    """
    files = [paths] if isinstance(paths, str | Path) else list(paths)
    layers = list(documents.layers(map(Path, files)))
    said = documents.command_line(overrides)
    spoken = Layer("command line", documents.set_from_command_line({}, said))
    for name, document in (*layers, spoken):
        if old := find_old(document):
            remedy = "" if name == spoken.name else f"; `star config --migrate {name}` rewrites the file"
            raise InputError(f"{name}: {old}{remedy}")
    merged: Document = {}
    for layer in layers:
        merged = documents.merge(merged, layer.document)
    merged = documents.set_from_command_line(merged, said)
    return _validated(merged, ", ".join(map(str, files)), [*layers, spoken])


def parse(document: Document, name: str) -> Config:
    """Validate a configuration that was already read from `name`. Raises InputError as `load`."""
    if old := find_old(document):
        raise InputError(f"{name}: {old}")
    return _validated(document, name, [])


def _validated(document: Document, name: str, layers: Sequence[Layer]) -> Config:
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        keys, message = _first(error)
        holding = [layer.name for layer in layers if keys and _has(layer.document, keys)]
        raise InputError(f"{holding[-1] if holding else name}: {message}") from None


def _has(value: Any, keys: Sequence) -> bool:
    for key in keys:
        if isinstance(value, list):  # of no interest which of its values
            return True
        if not isinstance(value, dict) or key not in value:
            return False
        value = value[key]
    return True


def _first(error: ValidationError) -> tuple[tuple, str]:
    """The keys of the first error, and what is wrong with their dotted name before it."""
    e = error.errors()[0]
    keys = tuple(key for key in e["loc"] if key != "[key]")
    message = e["msg"].removeprefix("Value error, ")
    if keys[:1] == ("objective",):
        keys = (keys[0], *keys[2:])  # behind it stands which objective
    if e["type"] == "extra_forbidden":
        message = "no such key; see docs/reference/config.md"
    known = ", ".join(OBJECTIVES)
    if e["type"] == "union_tag_invalid":
        keys, message = ("objective", "name"), f"no objective {e['ctx']['tag']!r}; there are {known}"
    if e["type"] == "union_tag_not_found":
        message = f"a section with the name of an objective; there are {known}"
    return keys, f"{'.'.join(map(str, keys))}: {message}" if keys else message


def json_schema() -> str:
    """The JSON schema of a configuration file, as kept in workflow/schemas/config.schema.json.

    A file may extend others, so no key is required of it, and a task or method may be null.
    """
    schema = Config.model_json_schema()
    for section in (schema, *schema["$defs"].values()):
        section.pop("required", None)
    for section in ("tasks", "methods"):
        entries = schema["properties"][section]
        entries["additionalProperties"] = {"anyOf": [entries["additionalProperties"], {"type": "null"}]}
        entries.pop("minProperties")
    objective = schema["properties"]["objective"]
    objective["anyOf"] = objective.pop("oneOf")  # without its name a part of one can be of several
    name = {"type": "string"}
    extends = {"description": EXTENDS, "anyOf": [name, {"type": "array", "items": name}]}
    schema["properties"] = {"extends": extends, **schema["properties"]}
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=1) + "\n"


EXTENDS = (
    "a file, or a list of files, that this one is laid over: from its own folder, or else from `config/`; `null` takes a task "
    "or method of them away"
)
