"""The objectives that the section `objective` chooses among by its `name`; defaults are the published ones for SD3.5 Medium.

A default that is ours says so.
"""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from star.config.fields import Fraction, Positive, Section

Form = Literal["weighted", "per_location"]
OldPolicy = Literal["none", "ramp", "late_ramp"]
_TIMES = "noise levels trained a sample, one from each of as many runs of the sampler's own; none: all that may be trained"
_KEPT = "leave rollouts without an advantage out of the update, instead of letting them hold the policy where it is (ours)"
_OLD = (
    "how much of the old policy, which samples, stays after an epoch: `none` 0, `ramp` min(0.001 epoch, 0.5), `late_ramp` 0 "
    "before epoch 75, then min(0.0075 (epoch - 75), 0.999)"
)


class FlowGrpo(Section):
    """Flow-GRPO (arXiv 2505.05470): clipped ratios of log-probabilities, allocated by maps (ours)."""

    name: Literal["flow_grpo"] = Field("flow_grpo", description="the objective")
    form: Form = Field(
        "weighted",
        description="`weighted`: one ratio a step, of the weighted log-probability; `per_location`: a ratio and a clip at "
        "every location, which needs a map",
    )
    clip_range: float = Field(1e-4, gt=0, description="the ratio is clipped to 1 +- this")
    location_clip_range: float = Field(
        1e-2, gt=0, description="the same for the ratio of one location (`form: per_location`), which varies more (ours)"
    )
    advantage_clip: float = Field(5.0, gt=0, description="advantages are clipped to +- this")
    advantage_spread: Literal["epoch", "group"] = Field(
        "epoch", description="what a centred reward is divided by: the deviation of all rewards of the epoch, or of its group"
    )
    kl_weight: float = Field(0.04, ge=0, description="weight of the distance from the untrained model")


class Guard(Section):
    """GRPO-Guard (arXiv 2510.22319): Flow-GRPO with normalised ratios and steps of equal weight."""

    name: Literal["guard"] = Field(description="the objective")
    form: Form = Field("weighted", description="as of `flow_grpo`")
    clip_range: float = Field(
        2e-6, gt=0, description="the ratio is clipped to 1 +- this; published 2e-6 (OCR), 4e-6 (PickScore)"
    )
    location_clip_range: float = Field(2e-4, gt=0, description="the same for the ratio of one location (ours)")
    advantage_clip: float = Field(5.0, gt=0, description="advantages are clipped to +- this")
    advantage_spread: Literal["epoch", "group"] = Field("group", description="as of `flow_grpo`")
    kl_weight: float = Field(0.0, ge=0, description="weight of the distance from the untrained model")


class Nft(Section):
    """DiffusionNFT (arXiv 2509.16117): a forward-process objective with two branches around an old policy."""

    name: Literal["nft"] = Field(description="the objective")
    form: Form = Field(
        "weighted",
        description="`weighted`: the map weighs the error, so it says how fast a place moves; `per_location`: it tilts the "
        "optimality probability, so it says how far (both ours)",
    )
    branch_strength: float = Field(
        1.0, gt=0, description="distance of the branches from the old policy; published 1 (GenEval, PickScore), 0.1 (OCR)"
    )
    old_policy: OldPolicy = Field("ramp", description=f"{_OLD}; published `ramp` (GenEval, PickScore), `late_ramp` (OCR)")
    times: Positive | None = Field(None, description=_TIMES)
    advantage_clip: float = Field(5.0, gt=0, description="advantages are clipped to +- this, where the probability is 0 or 1")
    kl_weight: float = Field(1e-4, ge=0, description="weight of the squared distance from the base's velocity")
    drop_equal_groups: bool = Field(False, description=_KEPT)


class Pepg(Section):
    """ELBO policy gradients (rethinking-diffusion-rl): the error of the clean picture as log-probability."""

    name: Literal["pepg"] = Field(description="the objective")
    form: Literal["pepg", "epg", "par"] = Field("pepg", description="the form of the policy gradient")
    old_policy: OldPolicy = Field("ramp", description=_OLD)
    times: Positive | None = Field(None, description=_TIMES)
    advantage_scale: float = Field(0.1, gt=0, description="advantages are this times the reward minus its group's mean")
    kl_weight: float = Field(1e-4, ge=0, description="weight of the squared distance from the base's velocity")
    drop_equal_groups: bool = Field(False, description=_KEPT)


class Awm(Section):
    """Advantage weighted matching (arXiv 2509.25050): the flow-matching loss as log-probability, with two anchors."""

    name: Literal["awm"] = Field(description="the objective")
    weighting: Literal["ghuber", "uniform", "t", "t2"] = Field(
        "ghuber", description="of the matching loss l: ((l + 1e-10)^q - 1e-10^q) t / q, l, t l, t^2 l"
    )
    power: float = Field(0.25, gt=0, le=1, description="q of `ghuber`")
    times: Positive | None = Field(6, description=_TIMES)
    skip_first: bool = Field(True, description="never train the first noise level; published for GenEval and OCR")
    advantage_clip: float = Field(5.0, gt=0, description="advantages are clipped to +- this")
    advantage_max: float = Field(1.0, gt=0, description="and then scaled so that the largest is this")
    kl_weight: float = Field(
        1e-3,
        ge=0,
        description="weight of the squared distance from the base's velocity; published 1e-3, 3e-3 (OCR), 1e-4 (PickScore)",
    )
    old_weight: float = Field(1.0, ge=0, description="weight of the squared distance from the policy that follows")
    old_rate: float = Field(0.001, ge=0, description="the policy that follows keeps min(old_rate x epoch, old_most) of itself")
    old_most: Fraction = Field(0.3, description="see `old_rate`")
    drop_equal_groups: bool = Field(False, description=_KEPT)


def _name(value: Any) -> str | None:
    """Which objective a section means; one that names none is Flow-GRPO's."""
    return value.get("name", "flow_grpo") if isinstance(value, dict) else getattr(value, "name", None)


Objective = Annotated[
    Annotated[FlowGrpo, Tag("flow_grpo")]
    | Annotated[Guard, Tag("guard")]
    | Annotated[Nft, Tag("nft")]
    | Annotated[Pepg, Tag("pepg")]
    | Annotated[Awm, Tag("awm")],
    Discriminator(_name),
]
OBJECTIVES = {"flow_grpo": FlowGrpo, "guard": Guard, "nft": Nft, "pepg": Pepg, "awm": Awm}
