"""Say what the model sees of an image; a model file holds it, and needs no more of the schema."""

from typing import Annotated

from pydantic import AfterValidator

from resnets.params.section import NonNegative, Positive, Section, SideLength
from resnets.system.errors import ParamsError


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
