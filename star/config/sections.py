"""The sections of a configuration but for allocation, objective and scorers. The reference page is made of their fields."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from star.config.fields import SPEED_ONLY, Fraction, Place, Positive, Resolution, Section
from star.config.scorers import Scorer

SETS = {  # of prompts, by world
    "miniature": ("shapes", "letters", "preference", "binding", "positions", "small"),
    "coco": ("geneval", "ocr", "pickscore"),
}
Reward = Annotated[dict[Scorer, float], Field(min_length=1)]


class Prompts(Section):
    """Where prompt records come from."""

    world: Literal["miniature", "coco"] = Field(
        description="`miniature` (shapes, colours, lettered plates) or `coco` (the benchmarks' own prompts, below)"
    )
    ocr: Literal["published", "generated"] = Field(
        "published",
        description="captions of the set `ocr` in `coco`: `published` (Flow-GRPO's) or `generated` (ours: a carrier scene with "
        "one quoted target, by a fixed seed, no download)",
    )
    mirror: Place | None = Field(
        None,
        description="folder with copies of the published files, for machines without network; a clone of "
        "github.com/yifan123/flow_grpo is one",
        json_schema_extra=SPEED_ONLY,  # holds the very same files
    )
    filter_unsafe: bool = Field(
        True,
        description="drop preference captions that are sexual, gory or hateful by their words, in every split; the number is "
        "printed. `false` keeps the published sets whole, which scores need to be compared with published ones",
    )


class Lora(Section):
    """The adapter that is trained."""

    rank: Positive = Field(32, description="rank of the trained adapter")
    alpha: Positive = Field(64, description="scale of the adapter: alpha / rank multiplies its output")
    targets: Annotated[list[str], Field(min_length=1)] | None = Field(
        None,
        description="ends of module names that get an adapter; each must match a module. none: those of the base's family "
        "([docs/models.md](../models.md)), of Stable Diffusion 3 the eight joint-attention projections",
    )


class PolicySettings(Section):
    """The generator: a diffusers pipeline of a known family, in a folder or a hub repository at a pinned revision."""

    model: Place = Field(
        description="folder of a diffusers pipeline, or a hub repository; which families can be trained: "
        "[docs/models.md](../models.md)"
    )
    revision: str | None = Field(
        None,
        description="commit of the hub repository, 40 hex digits; none: the one that `star fetch` locks in "
        "`config/weights.lock.json` ([docs/run/weights.md](../run/weights.md)); a folder needs none",
    )
    resolution: Resolution = Field(
        description="size of the images, pixels: one number for squares, or `[height, width]`; multiples of the base's patches"
    )
    guidance: float = Field(ge=1, description="guidance in rollout, update and sampling; 1 is without; FLUX.1-dev is told it")
    max_sequence_length: Positive = Field(
        128, description="columns of the T5 block, or of the one text block; Z-Image and FLUX.2 count their template's"
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "float32",
        description="`float32`, `bfloat16` or `float16` inside the transformer; latents and step arithmetic stay float32. "
        "`auto`: `bfloat16` where the GPU, or the CPU by AVX512-BF16 or AMX, multiplies it in hardware, else `float32`; what "
        "was begun in one is not continued in the other, so on a cluster of mixed machines name one",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="`auto`, `cpu` or `cuda`; with `cpu` the rules ask for no GPU, otherwise for one"
    )
    lora: Lora = Field(Lora(), description="the trained adapter")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images, pixels."""
        return self.resolution if isinstance(self.resolution, tuple) else (self.resolution, self.resolution)


class Rollout(Section):
    """How training images are sampled (SDE)."""

    sampler: Literal["flow_sde", "cps"] = Field(
        "flow_sde",
        description="`flow_sde` (Flow-GRPO) or `cps`, which adds noise without lowering the share of the picture",
    )
    solver: Literal["euler", "multistep"] = Field(
        "multistep",
        description="of rollouts without noise, which forward-process objectives take: Euler, or DPM-Solver++ of second order",
    )
    steps: Positive = Field(10, description="denoising steps")
    noise_level: float = Field(0.7, gt=0, description="a of the sampler: how much noise a step adds")
    groups: Positive = Field(48, description="prompts an epoch")
    spare_groups: int = Field(
        0,
        ge=0,
        description="further prompts an epoch, sampled when all images of some group got the same reward: their groups take "
        "the places of such groups, from which nothing is learned. All sampled images count",
    )
    group_size: int = Field(24, ge=2, description="images of each prompt; the advantage compares them with each other")
    batch: Positive = Field(24, description="images sampled at once; divides groups x group_size")
    same_start: bool = Field(
        False,
        description="the images of a group start at the same noise and differ by the sampler's noise alone, which is what the "
        "update can credit; steps before a window are then sampled once a group",
    )
    trained_fraction: float = Field(
        0.99, gt=0, le=1, description="share of the steps, from the first, that is trained (rounded down)"
    )
    window: Positive | None = Field(
        None,
        description="train this many consecutive steps, drawn anew each epoch, and sample the others without noise; none "
        "trains all",
    )
    window_range: tuple[int, int] | None = Field(
        None, description="first and last-plus-one step in which the window may lie; none: the trained steps"
    )


class Optimizer(Section):
    """AdamW."""

    learning_rate: float = Field(3e-4, gt=0, description="of AdamW, constant")
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.999), description="of AdamW")
    weight_decay: float = Field(1e-4, ge=0, description="of AdamW")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")
    update_norm: float | None = Field(
        None,
        gt=0,
        description="every optimizer step changes the adapter's weights by exactly this L2 norm, in the direction that AdamW "
        "chose: compares methods at equal update size instead of equal rate; none leaves AdamW's own size, which the metric "
        "`update_norm` tells",
    )


class Training(Section):
    """How long, and what is averaged."""

    epochs: Positive = Field(description="rollouts followed by updates; more of them continue a shorter run")
    updates_per_epoch: Positive = Field(2, description="optimizer steps an epoch; its images are split among them")
    equal_updates: bool = Field(
        False,
        description="cut the rollouts that are kept into equal updates, as Flow-GRPO does, instead of filling one micro-batch "
        "after the other: AdamW makes an update of two rollouts as large as one of 48",
    )
    ema_decay: Fraction = Field(0.9, description="decay of the averaged weights, which are sampled and saved")
    ema_every: Positive = Field(8, description="optimizer steps between two averagings")
    reward_combination: Literal["sum", "standardised", "advantages"] = Field(
        "sum",
        description="how the rewards of several scorers become one advantage: of their weighted `sum`; of the weighted sum of "
        "`standardised` rewards, each over its deviation in the epoch, so that a reward of small spread counts as one of large "
        "spread; or the weighted mean of their `advantages`, each made by the objective's own rule "
        "([docs/objectives.md](../objectives.md))",
    )
    max_kl: float | None = Field(
        None,
        gt=0,
        description="stop the run, its last checkpoint standing, when an epoch's KL to the untrained model is above this: a "
        "guard against collapse",
    )
    stop_without_advantage: Positive | None = Field(
        20,
        description="stop the run, at a checkpoint to go on from, after this many epochs in a row in which no image had an "
        "advantage; it warns after half of them. none goes on",
    )
    stop_without_better: Positive | None = Field(
        None,
        description="stop the run, at a checkpoint to go on from, when so many times in a row the pictures of fixed prompts "
        "(`tracking.prompts`) had no higher reward than all before; none goes on",
    )

    step_backs: int = Field(
        0,
        ge=0,
        description="how many times the training, when it diverges (numbers that are not finite, or `max_kl`), goes back to "
        "its newest state from before the last whole epoch and on from there at a lower rate, instead of stopping",
    )
    step_back_factor: float = Field(
        0.5, gt=0, lt=1, description="what a step back multiplies `optimizer.learning_rate` and `optimizer.update_norm` by"
    )


class Checkpoints(Section):
    """What is kept of a training, and when."""

    every: Positive = Field(description="epochs between checkpoints; each is sampled and scored, the last epoch always")
    save_every: Positive | None = Field(
        None, description="epochs between states saved only to resume from, beside those of `every`"
    )
    keep_states: Positive = Field(
        2,
        description="how many of the newest states are kept; of older checkpoints only the adapter is, and of `save_every`'s "
        "nothing",
    )


class Compute(Section):
    """What training runs on: speed and memory; no number changes beyond rounding."""

    processes: Positive = Field(
        1, description="training processes, one GPU each; the rule starts them with `accelerate launch`"
    )
    machines: Positive = Field(1, description="machines that the processes are spread over evenly, inside one SLURM job")
    shard: bool = Field(
        False,
        description="share the frozen base out over the processes (FSDP) instead of a copy in each; slower, for bases that do "
        "not fit",
    )
    offload: Literal["none", "blocks"] = Field(
        "none",
        description="`blocks` keeps the frozen transformer in the CPU's memory and brings its blocks to the GPU one after the "
        "other (FSDP); slower still, for bases that do not fit on the GPUs there are",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="compute activations again in the backward pass instead of keeping them: a third slower, a tenth of the "
        "memory",
    )
    compile: bool = Field(False, description="`torch.compile` of the transformer's blocks")
    vae_slicing: bool = Field(False, description="decode pictures one by one")
    vae_tiling: bool = Field(False, description="decode large pictures in tiles")
    tf32: bool = Field(False, description="TF32 products of float32 matrices on NVIDIA GPUs")

    @model_validator(mode="after")
    def _processes_fill_the_machines(self) -> "Compute":
        if self.processes % self.machines:
            raise ValueError(f"machines: {self.processes} processes cannot be shared evenly by {self.machines} machines")
        return self


class Evaluation(Section):
    """How test images are sampled (ODE, averaged weights)."""

    split: Literal["test", "validation"] = Field(
        "test", description="the prompts: `test`, or `validation`, on which settings are chosen"
    )
    steps: Positive = Field(40, description="denoising steps")
    resolution: Resolution | None = Field(
        None,
        description="size of the test images where it is not that of training, as in `policy.resolution`; a base whose noise "
        "levels depend on the size takes those of this one",
    )
    images_per_prompt: Positive = Field(4, description="images of each test prompt, at noise shared by all methods")
    batch: Positive = Field(16, description="images sampled at once", json_schema_extra=SPEED_ONLY)


class Tracking(Section):
    """What can be watched of a training while it goes on; changes no number of it."""

    live: bool = Field(
        True,
        description="send metrics and pictures to MLflow while the training goes on: to `MLFLOW_TRACKING_URI`, or to "
        "`<results>/mlflow.db` where that lies on a local disk ([docs/run/tracking.md](../run/tracking.md))",
    )
    every: Positive = Field(
        10, description="epochs between pictures; the untrained model and tested checkpoints always have some"
    )
    prompts: int = Field(8, ge=0, description="how many fixed validation prompts are drawn, two pictures each; 0 draws none")
    system_every: Positive | None = Field(
        30, description="seconds between two looks at processor, memory and GPUs while `live`; none does not look"
    )


class PromptFiles(Section):
    """The prompts of a task: a set of the world, and files of one's own that stand for its splits."""

    set: str | None = Field(None, description="set of the world, for the splits without a file")
    train: Place | None = Field(None, description="file of training prompts ([docs/extend/index.md](../extend/index.md))")
    validation: Place | None = Field(None, description="file of validation prompts")
    test: Place | None = Field(None, description="file of test prompts")


def _prompt_files(value: Any) -> Any:
    return {"set": value} if isinstance(value, str) else value


def _rewarded(data: dict[str, Any]) -> list[str]:
    return list(data["reward"])


class TaskSettings(Section):
    """One task: prompts, a reward, what is reported, and what it changes in the other sections."""

    prompts: Annotated[PromptFiles, BeforeValidator(_prompt_files, json_schema_input_type=str | PromptFiles)] = Field(
        description="a set of the world (`coco`: `geneval`, `ocr`, `pickscore`; `miniature`: `shapes`, `letters`, "
        "`preference`, `binding`, `positions`, `small`), or files of your own: `{train: my/train.txt, test: my/test.txt}`; "
        "`set` beside them names the set of the other splits ([docs/extend/index.md](../extend/index.md))"
    )
    reward: Reward = Field(
        description="mapping from scorer to weight; the reward is the weighted sum. A scorer is `geneval`, `ocr`, `pickscore` "
        "or `module:function`, your own ([docs/extend/index.md](../extend/index.md))"
    )
    report: Annotated[list[Scorer], Field(min_length=1)] = Field(
        default_factory=_rewarded,
        description="scorers that test pictures are scored by; the first is the task's column in tables and figures. Without "
        "it: those of the reward",
    )
    overrides: dict[str, dict[str, Any]] = Field(
        {},
        description="what the task changes in `rollout`, `objective`, `optimizer`, `training`, `checkpoints`, `allocation`",
    )

    @field_validator("report")
    @classmethod
    def _each_scorer_once(cls, report: list[str]) -> list[str]:
        if len(set(report)) < len(report):
            raise ValueError("a scorer is named twice")
        return report


class MethodSettings(Section):
    """One method: the tasks it is for and what it changes in the other sections."""

    tasks: Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="the tasks that the method is trained on; none: all"
    )
    rollout: dict[str, Any] = Field({}, description="keys of `rollout` that the method changes")
    objective: dict[str, Any] = Field({}, description="keys of `objective` that the method changes")
    optimizer: dict[str, Any] = Field({}, description="keys of `optimizer` that the method changes")
    training: dict[str, Any] = Field({}, description="keys of `training` that the method changes")
    checkpoints: dict[str, Any] = Field({}, description="keys of `checkpoints` that the method changes")
    allocation: dict[str, Any] = Field({}, description="keys of `allocation` that the method changes")
