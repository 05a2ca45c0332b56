"""Say what to do next, in plain words: each sentence follows from a rule over measured numbers."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import NamedTuple

from resnets.data.findings import IMBALANCE
from resnets.evaluation.significance import Z
from resnets.report.results import Results

SIMPLE = {
    "majority": "always the most frequent class",
    "linear": "linear model on the pixels",
    "svm": "support-vector machine on the pixels",
    "probe": "linear model on the backbone",
}
LISTED = 10  # names in a sentence
WEAK_SEARCH = 0.8  # share of the labels that the search for wrong ones agrees with
GAP = 0.05  # of training over validation accuracy, and
RATIO = 2  # of the mistakes: from both on, the network knows its own images by heart
UNLEARNED = 0.9  # training accuracy below which, without that, the network could learn more
LOOSE, TIGHT = 0.05, 0.03  # half widths of the test's interval: too wide, and good enough
SURE = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # thresholds of confidence to choose from
GOOD = 0.95  # share of the sure answers that should be right


class Advice(NamedTuple):
    """Hold a step to take, and the numbers that speak for it."""

    step: str
    why: str


def advise(results: Results) -> list[Advice]:
    """Return what to do, what casts doubt on the score first."""
    rules = (_doubts, _labels, _classes, _files, _odd, _gap, _ranking, _test, _groups, _use)
    return [advice for rule in rules for advice in rule(results)]


def percent(share: float) -> str:
    """Write a share as people say it: 88.8%, 90%."""
    return f"{100 * share:.1f}".removesuffix(".0") + "%"


def number(count: int, noun: str) -> str:
    """Write a count with its noun: 1 image, 1,200 images."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def enumerate_words(names: Sequence[str]) -> str:
    """Write the first names and how many are left out: a, b and 7 more."""
    left = len(names) - LISTED
    *others, last = names if left < 2 else (*names[:LISTED], f"{left:,} more")
    return f"{', '.join(others)} and {last}" if others else last


def _doubts(results: Results) -> Iterator[Advice]:
    best = results.variants[results.best]
    rows = results.yardsticks.items()
    unbeaten = {name: row for name, row in rows if row["is_like_best"] or row["difference"] > 0}
    if unbeaten:
        scores = enumerate_words(
            [f"{SIMPLE[name]} {percent(row['seeds_mean'])}" for name, row in unbeaten.items()]
        )
        yield Advice(
            "Do not rely on the network yet",
            f"Simple methods without training a network do as well, as far as "
            f"{best['images']:,} test images can tell: {scores}, "
            f"{results.best} {percent(best['seeds_mean'])}. More images help most.",
        )
    if near := results.labels["near_source"]:
        yield Advice(
            "Take the score with care",
            f"{number(near, 'image')} of this task, or near-duplicates of them, are among those "
            "that the backbone learned from, so the score may be too high.",
        )


def _groups(results: Results) -> Iterator[Advice]:
    scores = results.labels.get("groups")
    if scores and scores["mixed"] > scores["apart"]:
        yield Advice(
            "Keep groups together wherever you measure",
            "Here no group of images is on two sides. A linear model on the backbone gets "
            f"{percent(scores['apart'])} that way; with images of one group on both sides it would "
            f"pretend {percent(scores['mixed'])}.",
        )


def _labels(results: Results) -> Iterator[Advice]:
    if not results.suspects:
        return
    sides, where = Counter(row["side"] for row in results.suspects), ""
    if not results.folds:  # in which each image is on every side once
        where = ", ".join(f"{sides[side]} in {side}" for side in ("train", "val", "test"))
        where = f" ({where})"
    agrees, trust = results.labels["agrees"], ""
    if agrees < WEAK_SEARCH:
        trust = f" The search itself agrees with only {percent(agrees)} of all labels: "
        trust += "rely on the order of the list, less on its length."
    yield Advice(
        f"Look at {number(len(results.suspects), 'label')} that may be wrong",
        f"The images look like another class than their own{where}; below is a list. Move what "
        "is wrong into the right folder, or correct it in your table; leave out what nobody can "
        f"tell, by its name in `tasks.target.exclude`.{trust}",
    )


def _classes(results: Results) -> Iterator[Advice]:
    known = [row for row in results.classes if row["recall"]]
    row = min(known, key=lambda row: float(row["recall"]))
    name, support, recall = row["class"], int(row["support"]), float(row["recall"])
    missed = Counter(answer for label, answer, _ in results.answers if answer != label == name)
    sizes = results.data["classes"] if results.folds else results.split["classes"]["train"]
    small, large, rare = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__), ""
    if sizes[large] > IMBALANCE * sizes[small]:
        rare = f" {large} has {sizes[large]:,}. Until {small} has more, every class counts alike "
        rare += "with `training.loss.class_weights: balanced`, as `resnets init` sets it."
    if missed:
        [(other, times)], total = missed.most_common(1), missed.total()
        part = "All" if times == total else f"{times:,} of the"
        chance = ""
        if float(row["recall_high"]) > results.variants[results.best]["test_accuracy"]:
            chance = f" With {number(support, 'test image')} of it, this may be chance."
        yield Advice(
            f"Add images of {name}, above all such that could pass for {other}",
            f"{name} is recognised least: {support - total:,} of {support:,} test images "
            f"({percent(recall)}). {part} {total:,} missed are taken for {other}. "
            f"{number(sizes[name], 'image')} of it were there to learn from.{chance}"
            f"{rare if name == small else ''}",
        )
    if rare and not (missed and name == small):
        yield Advice(f"Add images of {small}", f"It has {sizes[small]:,} to learn from.{rare}")


def _files(results: Results) -> Iterator[Advice]:
    if results.rejected:
        reasons = Counter(row["reason"].replace("_", " ") for row in results.rejected)
        shown = ", ".join(f"{times} {reason}" for reason, times in reasons.items())
        yield Advice(
            f"Repair or replace {number(len(results.rejected), 'file')}",
            f"They could not be used and were left out: {shown}. The table below says why.",
        )


def _odd(results: Results) -> Iterator[Advice]:
    kinds = {kind: times for kind, times in results.data["findings"].items() if times}
    if kinds:
        shown = ", ".join(f"{times} {kind}" for kind, times in kinds.items())
        yield Advice(
            f"Look at {number(sum(kinds.values()), 'odd image')}",
            f"They differ from the rest: {shown}. They were used. `resnets check` names them; "
            "`resnets init PHOTOS --exclude-findings` leaves them out.",
        )


def _gap(results: Results) -> Iterator[Advice]:
    last = {row.get("fold"): row for row in results.epochs if row["is_chosen"] == "True"}.values()
    train, val = (fmean(float(row[f"{x}_accuracy"]) for row in last) for x in ("train", "val"))
    shown = f"It gets {percent(train)} right of the images it learns from, {percent(val)} of others"
    if train - val > GAP and 1 - val > RATIO * (1 - train):
        yield Advice(
            "More images will help more than longer training",
            f"{shown}: the network knows its own images partly by heart. Other remedies are "
            "stronger changes of the images (`training.augment`) and fewer epochs.",
        )
    elif train < UNLEARNED:
        yield Advice(
            "Try a longer training",
            f"{shown}: it has not yet learned its own. Raise `training.epochs`, or train more of "
            "the network (`transfer`).",
        )


def _ranking(results: Results) -> Iterator[Advice]:
    rank = results.ranking
    if not rank or rank["needed"] <= rank["images"]:
        return
    first, second = list(results.variants)[:2]
    if results.variants[second]["is_like_best"]:  # else the test tells them apart
        yield Advice(
            f"Do not read much into {first} being ahead of {second}",
            f"{number(rank['images'], 'validation image')} can tell variants apart that differ by "
            f"{100 * rank['detectable']:.1f} points or more; these two differ by "
            f"{100 * rank['gap']:.1f}, which takes about {rank['needed']:,}.",
        )


def _test(results: Results) -> Iterator[Advice]:
    best = results.variants[results.best]
    low, high, share = best["test_low"], best["test_high"], best["test_accuracy"]
    if high - low > 2 * LOOSE:
        enough = math.ceil(Z**2 * max(share * (1 - share), low * (1 - low)) / TIGHT**2)
        yield Advice(
            "Test on more images",
            f"With {number(best['images'], 'test image')}, the true score may be anything from "
            f"{percent(low)} to {percent(high)}. About {enough:,} would tell it to "
            f"{100 * TIGHT:.0f} points{'' if results.folds else ' (`split.target.test`)'}.",
        )


def _use(results: Results) -> Iterator[Advice]:
    answers, use = results.answers, "`resnets predict new_images/ -o answers.csv` classifies others"
    for sure in SURE:
        kept = [label == answer for label, answer, confidence in answers if confidence >= sure]
        if kept and sum(kept) >= GOOD * len(kept):
            share = percent(1 - len(kept) / len(answers))
            yield Advice(
                "Let people look at what the network is unsure of",
                f"{use}. Of the answers that are at least {sure:.0%} sure, "
                f"{percent(sum(kept) / len(kept))} are right on the test; {share} of the images "
                f"are below. --threshold {sure:g} marks them as unsure.",
            )
            return
    yield Advice("Have every answer checked", f"{use}; at no confidence are {GOOD:.0%} right.")
