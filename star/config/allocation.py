"""The section `allocation`: where the advantage goes, in space and time. Ours (docs/method.md)."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from star.config.fields import Fraction, Positive, Section

Kind = Literal["object", "attribute", "count", "relation", "text"]


class Allocation(Section):
    """STAR's maps (ours)."""

    source: Literal[
        "none", "uniform", "attention", "oracle", "deviation", "covariance", "attention_deviation", "attention_covariance"
    ] = Field(
        "none",
        description="`attention`: maps from the generator's attention; `deviation`: where a rollout differs from its group's "
        "mean; `covariance`: where such differences go with the reward; `attention_deviation`, `attention_covariance`: their "
        "products with the attention map; `oracle`: the true objects, in the miniature; `uniform`: ones, through the same "
        "code; `none`: the scalar objective",
    )
    contrast_latents: Literal["final", "step", "predicted"] = Field(
        "final",
        description="latents that `deviation` and `covariance` compare: the rollout's `final` ones, those that the trained "
        "`step` leads to, or the clean picture `predicted` from these",
    )
    leave_one_out: bool = Field(
        True,
        description="`covariance`: make a rollout's map from the others of its group, so that its own reward does not bias it; "
        "`false` makes one map a group",
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
        "(`star maps --localisation`); `deviation` and `covariance` need none",
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
    time: Literal["equal", "equal_noise", "measured", "snr"] | list[Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(
        "equal",
        description="weights of the trained steps (or of the noised times), mean 1, which multiply the policy's loss: `equal`; "
        "`equal_noise`: 1 / the size of a step's own gradient, by the sampler's coefficients first and measured then; "
        "`measured`: signal / noise^2 and `snr`: signal / noise, measured while training; or numbers, one for each step that "
        "may be trained, as `star credit` gives them. With or without maps",
    )

    @field_validator("time")
    @classmethod
    def _some_step_counts(cls, time: str | list[float]) -> str | list[float]:
        if not isinstance(time, str) and not any(time):
            raise ValueError("no step has a weight; give one number above 0 at least, or the name of a rule")
        return time

    @model_validator(mode="after")
    def _a_control_needs_maps(self) -> "Allocation":
        if self.control != "none" and self.source == "none":
            raise ValueError(f"control: {self.control} needs maps to change; source: none makes none")
        return self
