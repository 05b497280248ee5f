"""The objectives that the section `objective` chooses among by its `name`."""

from typing import Literal

from pydantic import Field

from star.config.sections import Section


class FlowGrpo(Section):
    """Flow-GRPO (arXiv 2505.05470): clipped ratios of log-probabilities, allocated by maps (ours)."""

    name: Literal["flow_grpo"] = Field("flow_grpo", description="the objective")
    form: Literal["weighted", "per_location"] = Field(
        "weighted",
        description="`weighted`: one ratio a step, of the weighted log-probability; `per_location`: a ratio and a clip at "
        "every location, which needs a map",
    )
    clip_range: float = Field(1e-4, gt=0, description="the ratio is clipped to 1 +- this")
    location_clip_range: float = Field(
        1e-2, gt=0, description="the same for the ratio of one location (`form: per_location`), which varies more"
    )
    advantage_clip: float = Field(5.0, gt=0, description="advantages are clipped to +- this")
    kl_weight: float = Field(0.04, ge=0, description="weight of the distance from the untrained model")


Objective = FlowGrpo  # with a second one: Annotated[FlowGrpo | Other, Field(discriminator="name")]
