"""The sections of a configuration but for the objective; the descriptions of the fields are config/README.md's tables.

A field that is marked `SPEED_ONLY` changes no number beyond rounding: star/config/key.py leaves it out.
"""

import os
import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

SCORERS = ("geneval", "ocr", "pickscore", "clipscore", "hpsv2", "aesthetic")
SETS = {"miniature": ("shapes", "letters", "preference"), "coco": ("geneval", "ocr", "pickscore")}  # of prompts, by world
SPEED_ONLY = {"speed_only": True}
_FUNCTION = r"[A-Za-z_][\w.]*:[A-Za-z_]\w*"  # module:function, see star/scoring/custom.py


def _place(value: str) -> str:
    """A path or repository with `~` and variables filled in; what only a shell would read is refused."""
    place = os.path.expandvars(os.path.expanduser(value))  # noqa: PTH111 - a repository's name stays as it is
    if not place.strip() or place != place.strip() or not place.isprintable():
        raise ValueError(f"{value!r} is no path: it is empty, or begins or ends with a space, or holds a line's end")
    if "$" in place or place.startswith("~"):
        raise ValueError(f"{value}: a variable or user in it is not known here; set it, or write the path out")
    return place


def _url(value: str) -> str:
    if not re.fullmatch(r"https?://[^\s/@]+(/\S*)?", value):
        raise ValueError(f"{value} is no address; write http://host:port/path, and a token's variable into token_variable")
    return value


def _scorer(name: str) -> str:
    if name not in SCORERS and not re.fullmatch(_FUNCTION, name):
        raise ValueError(f"no scorer {name!r}; there are {', '.join(SCORERS)}, service:NAME, judge:NAME, and module:function")
    return name


Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Precision = Literal["float32", "bfloat16", "float16"]
Kind = Literal["object", "attribute", "count", "relation", "text"]
Place = Annotated[str, AfterValidator(_place)]
Url = Annotated[Place, AfterValidator(_url)]
Scorer = Annotated[str, AfterValidator(_scorer)]
Reward = Annotated[dict[Scorer, float], Field(min_length=1)]


class Section(BaseModel):
    """What all sections have in common: unknown keys, infinite numbers and `true` for a number are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _a_switch_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation is not bool:
            raise ValueError(f"{str(value).lower()} is a switch, which this key is not")
        return value


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
    targets: list[str] = Field(
        [
            *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
            *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
        ],
        description="module names that get an adapter; the default is the eight joint-attention projections",
    )


class PolicySettings(Section):
    """The generator: an SD3-format folder, or a hub repository at a pinned revision."""

    model: Place = Field(description="SD3-format pipeline folder, or a hub repository")
    revision: str | None = Field(
        None,
        description="commit of the hub repository, 40 hex digits; none: the one that `star fetch` locks in "
        "`config/weights.lock.json` ([docs/weights.md](../docs/weights.md)); a folder needs none",
    )
    resolution: Positive = Field(description="height and width of the images, pixels")
    guidance: float = Field(ge=1, description="classifier-free guidance in rollout, update and sampling; 1 is without")
    max_sequence_length: Positive = Field(128, description="columns of the T5 block")
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
    ema_decay: Fraction = Field(0.9, description="decay of the averaged weights, which are sampled and saved")
    ema_every: Positive = Field(8, description="optimizer steps between two averagings")
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


class Allocation(Section):
    """STAR's maps (ours)."""

    source: Literal["none", "uniform", "attention", "oracle"] = Field(
        "none",
        description="`attention`: maps from the generator's attention; `oracle`: the true objects, in the miniature; "
        "`uniform`: ones, through the same code; `none`: the scalar objective",
    )
    control: Literal["none", "random", "shuffled", "inverse"] = Field(
        "none",
        description="what is done to the maps to test them: `random` puts a map's weights at the places of fresh smooth noise, "
        "`shuffled` at independent places, `inverse` turns it upside down: most weight where the source has least",
    )
    tokens: Literal["core", "all"] | Annotated[list[Kind], Field(min_length=1)] = Field(
        "core",
        description="prompt tokens whose attention counts: the `core` content, `all`, or a list of kinds of core content: "
        "`object`, `attribute`, `count`, `relation`, `text`",
    )
    blocks: list[Annotated[int, Field(ge=0)]] = Field(
        [],
        description="transformer blocks whose attention makes the maps; which ones localise is measured per base model "
        "(`star maps --localisation`)",
    )
    heads: Annotated[list[int], Field(min_length=1)] | None = Field(
        None, description="attention heads to average; none takes all"
    )
    steps: Literal["each", "first", "last"] | Positive = Field(
        "each",
        description="whose map a step uses: its own (`each`), that of the `first` or `last` step, or a number of distinct maps "
        "over the trajectory (1: one static map)",
    )
    smoothing: float = Field(1.0, ge=0, description="standard deviation of the Gaussian smoothing, tokens")
    granularity: Literal["all"] | Positive = Field(
        1, description="maps are pooled over squares of this many tokens a side, or to one value a step (`all`)"
    )
    sharpness: float = Field(1.0, gt=0, description="exponent on the map before it is normalised")
    floor: Fraction = Field(0.2, description="share of the update that is spread evenly: 1 is the scalar objective again")
    normalisation: Literal["per_step", "per_trajectory"] = Field(
        "per_step",
        description="mean 1 over the locations of every step, or over steps and locations jointly (`per_trajectory`): steps "
        "with more attention to the core content then weigh more",
    )

    @model_validator(mode="after")
    def _a_control_needs_maps(self) -> "Allocation":
        if self.control != "none" and self.source == "none":
            raise ValueError(f"control: {self.control} needs maps to change; source: none makes none")
        return self


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
    images_per_prompt: Positive = Field(4, description="images of each test prompt, at noise shared by all methods")
    batch: Positive = Field(16, description="images sampled at once", json_schema_extra=SPEED_ONLY)


class Tracking(Section):
    """What can be watched of a training while it goes on; changes no number of it."""

    live: bool = Field(
        True,
        description="send metrics and pictures to MLflow while the training goes on: to `MLFLOW_TRACKING_URI`, or to "
        "`<results>/mlflow.db` where that lies on a local disk ([docs/tracking.md](../docs/tracking.md))",
    )
    every: Positive = Field(
        10, description="epochs between pictures; the untrained model and tested checkpoints always have some"
    )
    prompts: int = Field(8, ge=0, description="how many fixed validation prompts are drawn, two pictures each; 0 draws none")
    system_every: Positive | None = Field(
        30, description="seconds between two looks at processor, memory and GPUs while `live`; none does not look"
    )


class Geneval(Section):
    """The detector of GenEval and what names colours."""

    detector: Literal["miniature", "mask2former", "mmdet"] = Field(
        "mask2former",
        description="`mask2former` (transformers), `mmdet` (the benchmark's own weights, in the environment `envs/mmdet.yaml`) "
        "or `miniature` (analytic, sees miniature scenes only); [docs/scorers.md](../docs/scorers.md) compares them",
    )
    model: Place = Field(
        "facebook/mask2former-swin-small-coco-instance",
        description="folder or hub repository of a `Mask2FormerForUniversalSegmentation` and its image processor; for `mmdet` "
        "the `.pth` file",
    )
    revision: str | None = Field(
        None,
        description="commit of the hub repository, 40 hex digits; none: the one that `star fetch` locks "
        "([docs/weights.md](../docs/weights.md)); a folder needs none",
    )
    size: Positive = Field(
        800,
        description="images are scaled to this shorter side, pixels (longer side at most 1333/800 of it), as the benchmark "
        "does; memory grows with its square",
    )
    batch: Positive = Field(8, description="images detected at once", json_schema_extra=SPEED_ONLY)
    precision: Precision = Field("float32", description="of detector and colour model")
    golden: Place | None = Field(
        None,
        description="folder of pictures with known answers (GenEval's layout; `correct: false` in a metadata.jsonl for a known "
        "wrong one) that the scorer must judge right before it scores; none takes the built-in ones",
        json_schema_extra=SPEED_ONLY,  # checks, and scores nothing
    )
    color_model: Place = Field(
        "openai/clip-vit-large-patch14",
        description="folder or hub repository of the `CLIPModel` that names the colours of objects, with its processor",
    )
    color_revision: str | None = Field(
        "32bd64288804d66eefd0ccbe215aa642df71cc41", description="commit of its hub repository; ignored for a folder"
    )


class Ocr(Section):
    """What reads lettering."""

    engine: Literal["rapidocr", "easyocr"] = Field(
        "easyocr",
        description="`easyocr` (the extra `easyocr`; fetches 94 MB of weights once) or `rapidocr` (its weights come in its "
        "package)",
    )
    mode: Literal["line", "page"] = Field(
        "page",
        description="`page` looks for text anywhere and reads it in order; `line` takes the whole image as one line",
    )
    size: Positive | None = Field(
        None,
        description="`line`: images are stretched to this width, pixels; `page`: scaled to this height; none keeps proportions "
        "or size",
    )
    weights: Place | None = Field(
        None,
        description="folder with EasyOCR's `craft_mlt_25k.pth` and `english_g2.pth`, for machines without network; none: "
        "EasyOCR's own folder",
        json_schema_extra=SPEED_ONLY,  # EasyOCR checks that they are the same
    )


class Pickscore(Section):
    """The preference model."""

    model: Place = Field("yuvalkirstain/PickScore_v1", description="CLIP folder or hub repository")
    revision: str | None = Field(
        "a4e4367c6dfa7288a00c550414478f865b875800",
        description="commit of the hub repository, 40 hex digits; a folder needs none",
    )
    processor: Place = Field("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", description="its processor, folder or hub repository")
    processor_revision: str | None = Field(
        "1c2b8495b28150b8a4922ee1c8edee224c284c0c",
        description="commit of the processor's hub repository; a folder needs none",
    )
    precision: Precision = Field("float32", description="inside the CLIP model; cosines and scores stay float32")


class Clipscore(Section):
    """CLIPScore."""

    model: Place = Field("openai/clip-vit-large-patch14", description="CLIP folder or hub repository, with its processor")
    revision: str | None = Field(
        "32bd64288804d66eefd0ccbe215aa642df71cc41", description="commit of the hub repository; a folder needs none"
    )
    precision: Precision = Field("float32", description="inside the CLIP model; cosines and scores stay float32")


class Hpsv2(Section):
    """HPSv2."""

    model: Place | None = Field(
        None, description="folder or hub repository of HPSv2's weights as a transformers `CLIPModel`, in safetensors"
    )
    revision: str | None = Field(None, description="commit of the hub repository, or none to lock it by `star fetch`")
    processor: Place = Field("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", description="its processor, folder or hub repository")
    processor_revision: str | None = Field(
        "1c2b8495b28150b8a4922ee1c8edee224c284c0c",
        description="commit of the processor's hub repository; a folder needs none",
    )
    precision: Precision = Field("float32", description="inside the CLIP model; cosines and scores stay float32")


class Aesthetic(Section):
    """LAION's aesthetic predictor."""

    model: Place = Field(
        "shunk031/aesthetics-predictor-v2-sac-logos-ava1-l14-linearMSE",
        description="folder or hub repository of a CLIP vision model with the predictor's `layers`, and its image processor",
    )
    revision: str | None = Field(None, description="commit of the hub repository, or none to lock it by `star fetch`")
    precision: Precision = Field("float32", description="of model and head")


class Remote(Section):
    """What services elsewhere have in common."""

    url: Url = Field(description="where it answers, http or https; `$VARIABLE` is filled in", json_schema_extra=SPEED_ONLY)
    version: str = Field(
        "", description="names what runs there: another one is another scorer, whose scores share no column with the old one's"
    )
    parallel: Positive = Field(4, description="requests at once, of each scoring process", json_schema_extra=SPEED_ONLY)
    timeout: float = Field(60.0, gt=0, description="seconds that an answer may take", json_schema_extra=SPEED_ONLY)
    retries: int = Field(
        5,
        ge=0,
        description="further tries after no answer or HTTP 408, 425, 429, 5xx, after 0.5 s and twice as long each time",
        json_schema_extra=SPEED_ONLY,
    )
    token_variable: str | None = Field(
        None, description="environment variable with the token that is sent as `Bearer`", json_schema_extra=SPEED_ONLY
    )


class Service(Remote):
    """A reward service: pictures and prompt records out, numbers back."""

    batch: Positive = Field(8, description="pictures a request", json_schema_extra=SPEED_ONLY)


class Judge(Remote):
    """A vision-language model that judges pictures, behind an OpenAI-compatible endpoint; `url` ends in `/v1`."""

    model: str = Field(description="the model's name at the endpoint")
    question: str | None = Field(
        None, description="what is asked, `{prompt}` for the prompt; none takes the question of docs/scorers.md"
    )
    max_tokens: Positive = Field(512, description="longest reply")

    @field_validator("question")
    @classmethod
    def _the_prompt_is_in_the_question(cls, question: str | None) -> str | None:
        if question is not None and "{prompt}" not in question:
            raise ValueError("has no {prompt}, so every picture would be asked the same")
        return question


class Scorers(Section):
    """What each scorer is made of and runs on."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="`auto`, `cpu` or `cuda`, for every scorer", json_schema_extra=SPEED_ONLY
    )
    workers: int = Field(
        1,
        ge=0,
        description="processes that score beside the sampling; 0 scores in the training process",
        json_schema_extra=SPEED_ONLY,
    )
    diversity: Literal["pickscore", "pixels"] = Field(
        "pickscore",
        description="features of the collapse guard `diversity`: the PickScore model's (`pickscore`) or, without its weights, "
        "thumbnails (`pixels`)",
    )
    geneval: Geneval = Field(Geneval(), description="the scorer `geneval`")
    ocr: Ocr = Field(Ocr(), description="the scorer `ocr`")
    pickscore: Pickscore = Field(Pickscore(), description="the scorer `pickscore`")
    clipscore: Clipscore = Field(Clipscore(), description="the scorer `clipscore`")
    hpsv2: Hpsv2 = Field(Hpsv2(), description="the scorer `hpsv2`")
    aesthetic: Aesthetic = Field(Aesthetic(), description="the scorer `aesthetic`")
    services: dict[str, Service] = Field(
        {}, description="reward services by names of your choice, each the scorer `service:NAME`: see below"
    )
    judges: dict[str, Judge] = Field(
        {}, description="judging models by names of your choice, each the scorer `judge:NAME`: see below"
    )

    @field_validator("services", "judges")
    @classmethod
    def _names_fit_scorers(cls, remotes: dict[str, Any]) -> dict[str, Any]:
        for name in remotes:
            if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
                raise ValueError(f"{name!r} is no name: letters, digits and _, a letter first")
        return remotes

    def remote(self, scorer: str) -> Remote | None:
        """The settings of `service:NAME` or `judge:NAME`; None for other scorers, and where there are none."""
        kind, _, name = scorer.partition(":")
        return {"service": self.services, "judge": self.judges}.get(kind, {}).get(name)


class PromptFiles(Section):
    """The prompts of a task: a set of the world, and files of one's own that stand for its splits."""

    set: str | None = Field(None, description="set of the world, for the splits without a file")
    train: Place | None = Field(None, description="file of training prompts ([docs/extend.md](../docs/extend.md))")
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
        "`preference`), or files of your own: `{train: my/train.txt, test: my/test.txt}`; `set` beside them names the set of "
        "the other splits ([docs/extend.md](../docs/extend.md))"
    )
    reward: Reward = Field(
        description="mapping from scorer to weight; the reward is the weighted sum. A scorer is `geneval`, `ocr`, `pickscore` "
        "or `module:function`, your own ([docs/extend.md](../docs/extend.md))"
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
