"""Read what a sweep tries, and draw its settings: the same ones from the same file."""

import math
from typing import Annotated, Self

from pydantic import Field, model_validator

from resnets.params.section import Count, Natural, Positive, Section

Value = bool | int | float | str | None
Settings = dict[str, Value]  # by the dotted key of params.yaml
# what changes images, sides or seeds would be judged by other validation images or by luck
Key = Annotated[str, Field(pattern=r"^(backbone|model|preprocess|training|transfer)\.[\w.-]+$")]


class Range(Section):
    """Say what a value is drawn from, by one of these keys; bounds are included."""

    log: tuple[Positive, Positive] | None = Field(None, strict=False)  # uniform in the logarithm
    uniform: tuple[float, float] | None = Field(None, strict=False)
    integers: tuple[int, int] | None = Field(None, strict=False)
    choices: Annotated[list[Value], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _is_one_kind_in_order(self) -> Self:
        given = self.log, self.uniform, self.integers, self.choices
        if sum(kind is not None for kind in given) != 1:
            raise ValueError("is no range; give it one of log, uniform, integers, choices")
        for low, high in filter(None, (self.log, self.uniform, self.integers)):
            if low >= high:
                raise ValueError(f"ends at {high}; write the smaller number first, as in [1, 2]")
        return self

    def at(self, position: float) -> Value:
        """Return the value at a position in [0, 1); a float has three digits."""
        if self.choices:
            return self.choices[int(position * len(self.choices))]
        if self.integers:
            low, high = self.integers
            return low + int(position * (high - low + 1))
        start, end = self.log or self.uniform or (0, 1)
        between = start + position * (end - start)
        if self.log:
            between = math.exp(math.log(start) + position * math.log(end / start))
        return min(max(float(f"{between:.3g}"), start), end)


class Sweep(Section):
    """Hold a sweep: what is drawn, how often, and the training whose validation judges it."""

    training: Annotated[str, Field(pattern=r"^(backbone|transfer\.[\w.-]+)$")]
    trials: Count
    seed: Natural = 0
    halvings: Annotated[int, Field(ge=0, le=8)] = 0  # of the trials, while their epochs double
    ranges: Annotated[dict[Key, Range], Field(min_length=1)]

    @property
    def variant(self) -> str:
        """Return the name of the training's files."""
        return self.training.removeprefix("transfer.")

    def draw(self) -> list[Settings]:
        """Return the settings of each trial; with more trials, the first ones stay.

        They are the points of a scrambled Sobol' sequence, which leave smaller gaps than
        independent ones (Bergstra & Bengio 2012, section 4).
        """
        from scipy.stats.qmc import Sobol

        power = (self.trials - 1).bit_length()  # the sequence is balanced at powers of two
        points = Sobol(len(self.ranges), rng=self.seed).random_base2(power)[: self.trials]
        return [
            {key: kind.at(x) for (key, kind), x in zip(self.ranges.items(), point, strict=True)}
            for point in points.tolist()
        ]
