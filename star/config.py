"""The configuration: one YAML file, checked whole before any work; config/README.md documents every key.

`load` reads and validates a file, `run_settings` resolves what one (task, method) uses: the task's overrides are laid over
the file's defaults, then the method's. The JSON schema in workflow/schemas/ is generated from these classes.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from star.errors import InputError

DRAWN_BY = 2  # raised when the code draws other pictures of the same weights; 2: adapters at full strength
TASKS = ("geneval", "ocr", "pickscore")
Task = Literal["geneval", "ocr", "pickscore"]
Kind = Literal["object", "attribute", "count", "relation", "text"]
Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Function = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]  # module:function, see star/scoring/custom.py
Reward = Annotated[dict[Task | Function, float], Field(min_length=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Lora(_Section):
    """The adapter that is trained."""

    rank: Positive = 32
    alpha: Positive = 64
    targets: list[str] = [
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    ]


class Policy(_Section):
    """The generator: an SD3-format folder, or a hub repository at a pinned revision."""

    model: str
    revision: str | None = None
    resolution: Positive
    guidance: float = Field(ge=1)
    max_sequence_length: Positive = 128
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    lora: Lora = Lora()


class Rollout(_Section):
    """How training images are sampled: a stochastic sampler with noise level a (method section 2)."""

    sampler: Literal["flow_sde", "cps"] = "flow_sde"
    steps: Positive = 10
    noise_level: float = Field(0.7, gt=0)
    groups: Positive = 48
    group_size: int = Field(24, ge=2)
    batch: Positive = 24
    same_start: bool = False
    trained_fraction: float = Field(0.99, gt=0, le=1)
    window: Positive | None = None
    window_range: tuple[int, int] | None = None


class Training(_Section):
    """The update (method section 2)."""

    epochs: Positive
    updates_per_epoch: Positive = 2
    learning_rate: float = Field(3e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(1e-4, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    update_norm: float | None = Field(None, gt=0)
    clip_range: float = Field(1e-4, gt=0)
    location_clip_range: float = Field(1e-2, gt=0)
    advantage_clip: float = Field(5.0, gt=0)
    kl_beta: float = Field(0.04, ge=0)
    ema_decay: Fraction = 0.9
    ema_every: Positive = 8
    max_kl: float | None = Field(None, gt=0)
    checkpoint_every: Positive
    save_every: Positive | None = None
    keep_states: Positive = 2


class Allocation(_Section):
    """The allocation map M (method section 3); `source: none` is the scalar objective."""

    source: Literal["none", "uniform", "attention", "random", "shuffled", "oracle"] = "none"
    objective: Literal["weighted", "per_location"] = "weighted"
    tokens: Literal["core", "all"] | Annotated[list[Kind], Field(min_length=1)] = "core"
    blocks: list[int] = []
    heads: Annotated[list[int], Field(min_length=1)] | None = None
    steps: Literal["each", "first", "last"] | Positive = "each"
    smoothing: float = Field(1.0, ge=0)
    granularity: Literal["all"] | Positive = 1
    sharpness: float = Field(1.0, gt=0)
    inverse: bool = False
    floor: Fraction = 0.2
    normalisation: Literal["per_step", "per_trajectory"] = "per_step"

    @model_validator(mode="after")
    def _locations_need_a_map(self) -> "Allocation":
        if self.objective == "per_location" and self.source == "none":
            raise ValueError("objective: per_location needs a map; source: uniform is the map of ones")
        return self


class Compute(_Section):
    """What training runs on: speed and memory; no number changes beyond rounding."""

    processes: Positive = 1
    machines: Positive = 1
    shard: bool = False
    gradient_checkpointing: bool = False
    compile: bool = False
    vae_slicing: bool = False
    vae_tiling: bool = False
    tf32: bool = False

    @model_validator(mode="after")
    def _processes_fill_the_machines(self) -> "Compute":
        if self.processes % self.machines:
            raise ValueError(f"machines: {self.processes} processes cannot be shared evenly by {self.machines} machines")
        return self


class Evaluation(_Section):
    """How test images are sampled: the Euler ODE with EMA weights."""

    split: Literal["test", "validation"] = "test"
    steps: Positive = 40
    images_per_prompt: Positive = 4
    batch: Positive = 16


class Prompts(_Section):
    """Where prompt records come from."""

    world: Literal["miniature", "coco"]
    ocr: Literal["published", "generated"] = "published"
    mirror: str | None = None
    filter_unsafe: bool = True
    files: dict[Task, dict[Literal["train", "validation", "test"], str]] = {}


class Scorers(_Section):
    """What each scorer runs on."""

    detector: Literal["miniature", "mask2former", "mmdet"] = "mask2former"
    detector_model: str = "facebook/mask2former-swin-small-coco-instance"
    detector_revision: str | None = None
    detector_size: Positive = 800
    detector_batch: Positive = 8
    detector_precision: Literal["float32", "bfloat16", "float16"] = "float32"
    detector_golden: str | None = None
    color_model: str = "openai/clip-vit-large-patch14"
    color_revision: str | None = "32bd64288804d66eefd0ccbe215aa642df71cc41"
    ocr_engine: Literal["rapidocr", "easyocr"] = "easyocr"
    ocr_mode: Literal["line", "page"] = "page"
    ocr_size: Positive | None = None
    ocr_weights: str | None = None
    pickscore_model: str = "yuvalkirstain/PickScore_v1"
    pickscore_revision: str | None = "a4e4367c6dfa7288a00c550414478f865b875800"
    pickscore_processor: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    pickscore_processor_revision: str | None = "1c2b8495b28150b8a4922ee1c8edee224c284c0c"
    pickscore_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    diversity: Literal["pickscore", "pixels"] = "pickscore"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: int = Field(1, ge=0)


class TaskSettings(_Section):
    """One task: its reward and what it changes in the other sections."""

    reward: Reward
    overrides: dict[str, Any] = {}


class MethodSettings(_Section):
    """One method: the tasks it is for (none: all of them) and what it changes in the other sections."""

    tasks: Annotated[list[Task], Field(min_length=1)] | None = None
    rollout: dict[str, Any] = {}
    training: dict[str, Any] = {}
    allocation: dict[str, Any] = {}


class RunSettings(_Section):
    """Everything that one training of one method on one task depends on."""

    task: Task
    method: str
    reward: Reward
    policy: Policy
    rollout: Rollout
    training: Training
    allocation: Allocation
    compute: Compute
    evaluation: Evaluation
    scorers: Scorers
    prompts: Prompts

    def digest(self) -> str:
        """The first 12 hex digits of the SHA-256 of what training depends on; a run may be extended by more epochs."""
        free = {
            "compute": True,
            "evaluation": True,
            "training": {"epochs", "max_kl", "save_every", "keep_states"},
            "scorers": {"workers", "diversity"},
            "prompts": {"mirror"},
        }
        return hashlib.sha256(self.model_dump_json(exclude=free).encode()).hexdigest()[:12]


class Config(_Section):
    """A configuration file."""

    experiment: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    results: str = "results"
    seeds: list[int] = Field(min_length=1)
    prompts: Prompts
    policy: Policy
    rollout: Rollout
    training: Training
    allocation: Allocation = Allocation()
    compute: Compute = Compute()
    evaluation: Evaluation
    scorers: Scorers
    tasks: dict[Task, TaskSettings] = Field(min_length=1)
    methods: dict[str, MethodSettings] = Field(min_length=1)

    @model_validator(mode="after")
    def _every_run_is_valid(self) -> "Config":
        if "base" in self.methods:
            raise ValueError("methods.base: `base` names the untrained model; call the method something else")
        for name, method in self.methods.items():
            for task in method.tasks or ():
                if task not in self.tasks:
                    raise ValueError(f"methods.{name}.tasks: no `{task}` under tasks; it has {', '.join(self.tasks)}")
        for task in self.tasks:
            if not methods_of(self, task):
                raise ValueError(f"tasks.{task}: no method is for it; see methods.<name>.tasks")
            for name in methods_of(self, task):
                run_settings(self, task, name)
        return self


def methods_of(config: Config, task: str) -> list[str]:
    """The methods that are trained on a task, in the configuration's order."""
    return [name for name, method in config.methods.items() if method.tasks is None or task in method.tasks]


def published_epochs(training: Training) -> set[int]:
    """The epochs whose checkpoints are kept to be sampled and scored: every `checkpoint_every`, and the last."""
    return {*range(training.checkpoint_every, training.epochs + 1, training.checkpoint_every), training.epochs}


_OVERRIDABLE = ("rollout", "training", "allocation")


def _merge(under: dict, over: dict) -> dict:
    return under | {
        k: _merge(under[k], v) if isinstance(v, dict) and isinstance(under.get(k), dict) else v for k, v in over.items()
    }


def run_settings(config: Config, task: str, method: str) -> RunSettings:
    """The settings of one task and method. Raises InputError when the configuration has no such task or method."""
    for section, key in (("tasks", task), ("methods", method)):
        if key not in getattr(config, section) and key != "base":
            known = ", ".join(getattr(config, section))
            raise InputError(f"{section}: no `{key}` in the configuration; it has {known}")
    if method != "base" and method not in methods_of(config, task):
        raise InputError(f"methods.{method}.tasks: `{method}` is not for `{task}`; add it there, or choose another method")
    changes = config.methods[method].model_dump(exclude={"tasks"}) if method in config.methods else {}
    settings = config.model_dump(include={"policy", "compute", "evaluation", "scorers", "prompts", *_OVERRIDABLE})
    for where, overrides in (
        (f"tasks.{task}.overrides", config.tasks[task].overrides),
        (f"methods.{method}", changes),
    ):
        for section in overrides:
            if section not in _OVERRIDABLE:
                raise ValueError(f"{where}.{section}: only {', '.join(_OVERRIDABLE)} can be overridden")
        settings = _merge(settings, overrides)
        try:
            RunSettings(task=task, method=method, reward=config.tasks[task].reward, **settings)
        except ValidationError as error:
            raise ValueError(f"{where}.{_first(error)}") from None
    return RunSettings(task=task, method=method, reward=config.tasks[task].reward, **settings)


def _first(error: ValidationError) -> str:
    e = error.errors()[0]
    key, message = ".".join(map(str, e["loc"])), e["msg"].removeprefix("Value error, ")
    if e["type"] == "extra_forbidden":
        message = "no such key; see config/README.md"
    return f"{key}: {message}" if key else message


def load(path: str | Path, overrides: list[str] = ()) -> Config:
    """Read a configuration file; `overrides` are `section.key=value` strings, values in YAML.

    Raises InputError, naming file and key, when the file is missing, is not YAML, or a key is unknown or wrong.
    """
    try:
        data = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such configuration file; config/ holds the known ones") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: a configuration is a mapping of sections; see config/README.md")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise InputError(f"--set {override}: write it as section.key=value")
        section = data
        *parents, last = key.split(".")
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise InputError(f"--set {override}: `{parent}` is not a section")
        section[last] = yaml.safe_load(value)
    return parse(data, str(path))


def parse(data: dict, name: str) -> Config:
    """Validate a configuration that was already read from `name`. Raises InputError."""
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise InputError(f"{name}: {_first(error)}") from None


def json_schema() -> str:
    """The JSON schema of a configuration file, as kept in workflow/schemas/config.schema.json."""
    draft = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps({"$schema": draft, **Config.model_json_schema()}, indent=1) + "\n"
