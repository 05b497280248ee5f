"""Which allocations are measured: the configuration's methods, a standard list around its settings, and what the caller adds.

Source: ours (docs/credit.md).
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from star.allocation.sources import contrast, looks_at_attention
from star.config import Allocation, Config, Objective, RunSettings, methods_of, require_task, run_settings
from star.errors import InputError
from star.objectives.door import make_objective
from star.worlds.door import world

SCALAR = "scalar"  # what all others are compared with
OCTILE = ".octile"  # between an allocation's name and the number of an eighth of its places


def base_settings(config: Config, task: str) -> RunSettings:
    """The settings that rollouts and objective are taken from: the file's sections under the task's overrides, without a map.

    A form by location becomes the weighted one, which has the same gradient where the policy is the one that sampled.
    """
    require_task(config, task)
    own = config.tasks[task]
    objective = {key: value for key, value in own.overrides.get("objective", {}).items() if key != "form"}
    tasks = config.tasks | {task: own.model_copy(update={"overrides": own.overrides | {"objective": objective}})}
    changed = config.model_copy(update={"tasks": tasks, "objective": _weighted(config.objective)})
    settings = run_settings(changed, task, "base")
    scalar = settings.allocation.model_copy(update={"source": "none", "control": "none", "time": "equal"})
    return settings.model_copy(update={"allocation": scalar})


def _weighted(objective: Objective) -> Objective:
    return objective.model_copy(update={"form": "weighted"}) if hasattr(objective, "form") else objective


def of_methods(config: Config, task: str) -> tuple[dict[str, Allocation], list[str]]:
    """The allocations of the task's methods that have a map, and the methods that differ in more and cannot share rollouts."""
    base, found, apart = base_settings(config, task), {}, []
    for method in methods_of(config, task):
        own = run_settings(config, task, method)
        if (own.rollout, _weighted(own.objective)) != (base.rollout, base.objective):
            apart.append(method)
        elif own.allocation.source != "none":
            found[method] = own.allocation.model_copy(update={"time": "equal"})  # steps are weighed afterwards
    return found, apart


def standard(settings: RunSettings, blocks: int) -> dict[str, Allocation]:
    """Variations on the settings' allocation, for a model of so many `blocks`; oracle only where the true objects are known."""
    allocation, trajectories = settings.allocation, make_objective(settings).noisy
    oracle = world(settings.prompts.world).regions([]) is not None
    own = allocation.model_copy(update={"control": "none", "blocks": allocation.blocks or [blocks // 2]})

    def varied(**changes: Any) -> Allocation:
        return own.model_copy(update=changes)

    found = {"uniform": varied(source="uniform")}
    found |= {"attention": varied(source="attention")}
    found |= {f"attention_sharpness{s}": varied(source="attention", sharpness=float(s)) for s in (1, 4)}
    found |= {f"attention_block{b}": varied(source="attention", blocks=[b]) for b in range(0, blocks, max(1, blocks // 4))}
    found |= {control: varied(source="attention", control=control) for control in ("random", "shuffled", "inverse")}
    if oracle:
        found["oracle"] = varied(source="oracle")
    for source in filter(contrast, get_args(Allocation.model_fields["source"].annotation)):
        found |= {source: varied(source=source), f"{source}_sharpness1": varied(source=source, sharpness=1.0)}
    found["covariance_random"] = varied(source="covariance", control="random")
    if trajectories:
        found["attention_per_trajectory"] = varied(source="attention", normalisation="per_trajectory")
    return found


def chosen(known: dict[str, Allocation], names: Sequence[str], allocation: Allocation) -> dict[str, Allocation]:
    """The allocations of some `names`; `NAME={key: value}` is one of its own, laid over `allocation`, of attention by default.

    Raises InputError for a name that is not known, and settings that are none.
    """
    found = {}
    for name in names:
        own, _, said = name.partition("=")
        if said and (not re.fullmatch(r"[A-Za-z][\w-]*", own) or own == SCALAR):
            raise InputError(f"--allocations {own}: no name for an allocation of your own; letters, digits, _ and -")
        if said:
            found[own] = _spoken(own, said, allocation)
        elif own in known:
            found[own] = known[own]
        elif own != SCALAR:
            raise InputError(f"--allocations {own}: not known; there are {', '.join([SCALAR, *known])}, or NAME={{key: value}}")
    return found


def _spoken(name: str, said: str, allocation: Allocation) -> Allocation:
    try:
        changes = yaml.safe_load(said)
        spoken = Allocation(**{**allocation.model_dump(), "source": "attention", **changes, "time": "equal"})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(f"--allocations {name}: allocation.{key}: {first['msg'].removeprefix('Value error, ')}") from None
    except (yaml.YAMLError, TypeError):
        raise InputError(f"--allocations {name}: {said!r} is no mapping; write {name}={{sharpness: 1}}") from None
    if spoken.source == "none":
        raise InputError(f"--allocations {name}: source: none is the scalar objective, which is always measured")
    return spoken


def without_twins(allocations: dict[str, Allocation]) -> dict[str, Allocation]:
    """Each allocation once, under its first name."""
    found: dict[str, Allocation] = {}
    for name, allocation in allocations.items():
        if allocation not in found.values():
            found[name] = allocation
    return found


def looks(allocations: Iterable[Allocation]) -> dict[tuple, list[int]]:
    """What attention is recorded for: (tokens, heads) -> blocks, of all allocations together."""
    blocks: dict[tuple, set[int]] = {}
    for allocation in allocations:
        if looks_at_attention(allocation.source):
            blocks.setdefault(look(allocation), set()).update(allocation.blocks)
    return {key: sorted(of_look) for key, of_look in blocks.items()}


def look(allocation: Allocation) -> tuple:
    """The tokens and heads that an allocation looks at, to be compared with others'."""
    tokens = allocation.tokens if isinstance(allocation.tokens, str) else tuple(allocation.tokens)
    return tokens, None if allocation.heads is None else tuple(allocation.heads)
