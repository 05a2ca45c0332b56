"""Say what every section of params.yaml is: frozen, strict and closed; and the types of values."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# marks a key that no training depends on, so that a stopped one goes on although it was changed;
# a key without this mark starts it afresh
CHANGES_NO_RESULT = "changes no result of training"


class Section(BaseModel):
    """Hold one section: frozen, strict (no silent conversion) and closed (no unknown keys)."""

    model_config = ConfigDict(defer_build=True, extra="forbid", frozen=True, strict=True)


def _refuse_bool(value: object) -> object:
    """Refuse true where 1 is allowed; Python takes them for equal."""
    if isinstance(value, bool):
        raise ValueError(f"{value} is no number")
    return value


Fraction = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Natural = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
SideLength = Annotated[int, Field(ge=4, le=4096)]  # of an image, in pixels
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]  # of files and folders
# the size of a side that is drawn: a fraction of the images, or a number of images per class
Size = Annotated[float, Field(gt=0, lt=1)] | Count
