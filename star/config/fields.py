"""What all sections of a configuration are made of: the base class, and the types that their fields share."""

import os
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

SPEED_ONLY = {"speed_only": True}  # of a field that changes no number beyond rounding: star/config/key.py leaves it out


def _place(value: str) -> str:
    """A path or repository with `~` and variables filled in; what only a shell would read is refused."""
    place = os.path.expandvars(os.path.expanduser(value))  # noqa: PTH111 - a repository's name stays as it is
    if not place.strip() or place != place.strip() or not place.isprintable():
        raise ValueError(f"{value!r} is no path: it is empty, or begins or ends with a space, or holds a line's end")
    if "$" in place or place.startswith("~"):
        raise ValueError(f"{value}: a variable or user in it is not known here; set it, or write the path out")
    return place


def _resolution(value: Any) -> int | tuple[int, int]:
    """Pixels; a square is one number, so that both ways of writing it mean the same."""
    sides = [value] if isinstance(value, int) else list(value) if isinstance(value, list | tuple) else []
    if len(sides) not in (1, 2) or not all(type(side) is int and side > 0 for side in sides):
        raise ValueError(f"{value!r} is neither a number of pixels nor [height, width]")
    return sides[0] if len(set(sides)) == 1 else tuple(sides)


Positive = Annotated[int, Field(gt=0)]
Resolution = Annotated[Positive | tuple[Positive, Positive], BeforeValidator(_resolution)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Precision = Literal["float32", "bfloat16", "float16"]
Place = Annotated[str, AfterValidator(_place)]


class Section(BaseModel):
    """What all sections have in common: unknown keys, infinite numbers and `true` for a number are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _a_switch_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        switches = [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, bool)]
        if switches and cls.model_fields[info.field_name].annotation is not bool:
            raise ValueError(f"{str(switches[0]).lower()} is a switch, which this key is not")
        return value
