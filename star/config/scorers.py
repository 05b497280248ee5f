"""The section `scorers`: what each scorer is made of and runs on, and how scorers are named."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from star.config.fields import SPEED_ONLY, Place, Positive, Precision, Section

SCORERS = ("geneval", "ocr", "pickscore", "clipscore", "hpsv2", "imagereward", "aesthetic")
_FUNCTION = r"[A-Za-z_][\w.]*:[A-Za-z_]\w*"  # module:function, see star/scoring/custom.py


def _url(value: str) -> str:
    if not re.fullmatch(r"https?://[^\s/@]+(/\S*)?", value):
        raise ValueError(f"{value} is no address; write http://host:port/path, and a token's variable into token_variable")
    return value


def _scorer(name: str) -> str:
    if name not in SCORERS and not re.fullmatch(_FUNCTION, name):
        raise ValueError(f"no scorer {name!r}; there are {', '.join(SCORERS)}, service:NAME, judge:NAME, and module:function")
    return name


Url = Annotated[Place, AfterValidator(_url)]
Scorer = Annotated[str, AfterValidator(_scorer)]


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


class Imagereward(Section):
    """ImageReward."""

    model: Place | None = Field(
        None,
        description="folder or hub repository of ImageReward's weights under the names of transformers' BLIP, in safetensors, "
        "and its tokenizer ([docs/scorers.md](../docs/scorers.md))",
    )
    revision: str | None = Field(None, description="commit of the hub repository, or none to lock it by `star fetch`")
    precision: Precision = Field("float32", description="inside the model; rewards stay float32")


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
    imagereward: Imagereward = Field(Imagereward(), description="the scorer `imagereward`")
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
