"""Keys: the only digests of settings. Two runs of one key give the same numbers; whatever else differs may change freely.

A key is the first 12 hex digits of the SHA-256 of a JSON text. What goes into it: the fields that change numbers, the content
of weights, prompt files and reward functions, and the version of the stage's code. What stays out:

- fields marked `SPEED_ONLY` (star/config/fields.py), and the sections `compute`, `checkpoints` and `tracking`;
- fields that have their default, so that a new field orphans nothing;
- settings of scorers that the reward does not use;
- how long a training goes on (`training.epochs`, `training.max_kl`, `training.stop_without_...`), and whether it steps back
  after a divergence, so that one that has diverged can be told to: what it did stands in its `checkpoints/step_backs.jsonl`.

Whoever changes a default, or code so that numbers change, raises the stage's version here.
"""

import functools
import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from star.config.experiment import Config, RunSettings, evaluated_policy
from star.config.sections import SETS, PolicySettings
from star.errors import InputError
from star.files import sha256
from star.hub import check, lock

# sampling 2: adapters at full strength
VERSIONS = {"prompts": 1, "training": 1, "sampling": 2, "scoring": 1}
_LENGTH = ("epochs", "max_kl", "stop_without_advantage", "stop_without_better", "step_backs", "step_back_factor")
_WEIGHTS = (".safetensors", ".json", ".txt", ".model", ".pth")
_MODELS = {  # by scorer: fields that name weights, with those that name their commits
    "geneval": {"model": "revision", "color_model": "color_revision"},
    "ocr": {},
    "pickscore": {"model": "revision", "processor": "processor_revision"},
    "clipscore": {"model": "revision"},
    "hpsv2": {"model": "revision", "processor": "processor_revision"},
    "imagereward": {"model": "revision"},
    "aesthetic": {"model": "revision"},
}


def training_key(settings: RunSettings) -> str:
    """What the numbers of a training depend on, but for the seed."""
    allocation = counted(settings.allocation)
    if settings.allocation.source == "none":  # nothing but the weights of steps counts
        allocation = {name: value for name, value in allocation.items() if name == "time"}
    return digest(
        {
            "version": VERSIONS["training"],
            "prompts": prompts_key(settings, "train"),
            "policy": _policy(settings.policy),
            "rollout": counted(settings.rollout),
            "objective": {"name": settings.objective.name, **counted(settings.objective)},
            "optimizer": counted(settings.optimizer),
            "training": counted(settings.training, without=_LENGTH),
            "allocation": allocation,
            "reward": settings.reward,
            "scorers": {scorer: scoring_key(settings, scorer) for scorer in settings.reward},
        }
    )


def sampling_key(settings: RunSettings | Config) -> str:
    """What test pictures depend on, but for adapter, prompts and seed."""
    evaluation, policy = counted(settings.evaluation, without=("resolution",)), _policy(evaluated_policy(settings))
    return digest({"version": VERSIONS["sampling"], "policy": policy, "evaluation": evaluation})


def maps_key(settings: RunSettings) -> str:
    """What drawn and measured maps depend on, but for adapter, prompts and seed."""
    sections = {"rollout": counted(settings.rollout), "allocation": counted(settings.allocation)}
    return digest({"version": VERSIONS["sampling"], "policy": _policy(settings.policy), **sections})


def scoring_key(settings: RunSettings | Config, scorer: str) -> str:
    """What the scores of one scorer depend on, but for the pictures. Raises InputError for a function that is not there."""
    if remote := settings.scorers.remote(scorer):
        return digest({"version": VERSIONS["scoring"], "scorer": scorer, "settings": counted(remote)})
    if ":" in scorer:
        return digest({"version": VERSIONS["scoring"], "function": scorer, "file": _content(function_file(scorer))})
    section = getattr(settings.scorers, scorer)
    models = _MODELS[scorer]
    loaded = {} if scorer == "geneval" and section.detector in SETS else models  # a world's own detector has no weights
    weights = {
        name: weights_digest(getattr(section, name), getattr(section, commit), f"scorers.{scorer}.{name}")
        for name, commit in loaded.items()
    }
    fields = counted(section, without=(*models, *models.values()))
    return digest({"version": VERSIONS["scoring"], "scorer": scorer, "settings": fields, "weights": weights})


def prompts_key(settings: RunSettings, split: str) -> str:
    """What the prompts of a split depend on. Raises InputError for a file that is not there."""
    file = getattr(settings.prompts_set, split, None)
    if file is not None:
        return digest({"version": VERSIONS["prompts"], "file": _content(Path(file))})
    return digest({"version": VERSIONS["prompts"], "set": settings.prompts_set.set, "prompts": counted(settings.prompts)})


def counted(section: BaseModel, without: Iterable[str] = ()) -> dict[str, Any]:
    """The fields of a section that change numbers and have another value than their default."""
    fields = {}
    for name, field in type(section).model_fields.items():
        value, marked = getattr(section, name), field.json_schema_extra or {}
        if name in without or marked.get("speed_only") or value == field.default:
            continue
        fields[name] = counted(value) if isinstance(value, BaseModel) else value
    return fields


def digest(value: Any) -> str:
    """The first 12 hex digits of the SHA-256 of a value's JSON text; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def weights_digest(source: str, revision: str | None = None, key: str = "policy.model") -> str:
    """Names the weights of `source`: by its files for a folder or file, by the commit for a repository.

    The commit is the pinned `revision`, or else the lock's. Moving a folder changes nothing. Raises InputError, naming `key`,
    for a folder that is not there, and for a repository that is neither pinned nor locked.
    """
    place = Path(source)
    if place.is_file():
        return digest({"file": _content(place)})
    if place.is_dir():
        files = sorted(file for file in place.rglob("*") if file.suffix in _WEIGHTS and file.name != "training.json")
        return digest({str(file.relative_to(place)): _content(file) for file in files})  # training.json: only its history
    named = check.Source(key, source, revision, ())
    if not check.is_repository(source):
        raise InputError(f"{key}: no folder {source}; give one with the weights, or a hub repository")
    return digest({"repository": source, "commit": lock.commit(source, revision, named.revision_key)})


def function_file(name: str) -> Path:
    """The file of the module in `module:function`. Raises InputError when there is none."""
    module = name.partition(":")[0]
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        raise InputError(f"reward.{name}: no module `{module}` in {Path.cwd()} or among the installed packages")
    return Path(spec.origin)


def _policy(policy: PolicySettings) -> dict[str, Any]:
    weights = weights_digest(policy.model, policy.revision)
    return counted(policy, without=("model", "revision")) | {"weights": weights}


def _content(file: Path) -> str:
    """The SHA-256 of a file's bytes. Raises InputError when it cannot be read."""
    try:
        known = file.stat()
        return _hashed(file.resolve(), known.st_size, known.st_mtime_ns)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error})") from None


@functools.cache
def _hashed(file: Path, size: int, mtime_ns: int) -> str:
    """Gigabytes are read once, as long as size and time stay what they were."""
    return sha256(file)
