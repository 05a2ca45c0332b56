"""Say what every section of params.yaml is: frozen, strict and closed; and the types of values."""

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from resnets.system.errors import ParamsError

# marks a key that no training depends on, so that a stopped one goes on although it was changed;
# a key without this mark starts it afresh
CHANGES_NO_RESULT = "changes no result of training"


class Section(BaseModel):
    """Hold one section: frozen, strict (no silent conversion) and closed (no unknown keys)."""

    model_config = ConfigDict(defer_build=True, frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, values: object) -> object:
        """Refuse a key that this section has not; pydantic's own error does not say what it has."""
        for key in values if isinstance(values, dict) else ():
            if key not in cls.model_fields:
                known = sorted(cls.model_fields)
                raise PydanticCustomError("unknown", "{key} unknown", {"key": key, "known": known})
        return values


def _refuse_odd(name: str) -> str:
    """Refuse a name that no file should have, or whose dot DVC would take for a key."""
    if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name):
        fix = "take at most 64 letters, digits, - and _, first a letter or a digit"
        raise ParamsError(f"{name!r} is no name", fix)
    return name


Fraction = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Natural = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
SideLength = Annotated[int, Field(ge=4, le=4096)]  # of an image, in pixels
Name = Annotated[str, AfterValidator(_refuse_odd)]  # of files and folders
# the size of a side that is drawn: a fraction of the images, or a number of images per class
Size = Annotated[float, Field(gt=0, lt=1)] | Count


def _refuse_unscaled(value: float) -> float:
    """Refuse a mean or standard deviation of pixels from 0 to 255."""
    if value > 1:
        fix = "divide it by 255: it is of pixels that are scaled to 0…1"
        raise ParamsError(f"{value} is larger than 1", fix)
    return value


class Preprocess(Section):
    """Say what the model sees at evaluation: the centre crop, normalised per channel."""

    crop: SideLength
    mean: list[Annotated[NonNegative, AfterValidator(_refuse_unscaled)]]
    std: list[Annotated[Positive, AfterValidator(_refuse_unscaled)]]
