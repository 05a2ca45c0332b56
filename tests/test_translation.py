"""Hold the Chinese documents to the English ones and to the kept results."""

import json
import re

import pandas as pd
import pytest

from resnets.evaluation.markdown import points
from resnets.params import load_params
from tests.copies import ROOT

ENGLISH, CHINESE = (
    (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md")
)
TUTORIALS = (ROOT / "docs/zh/tutorials.md").read_text(encoding="utf-8")
NUMBER = re.compile(r"−?\d+(?:[.,:]\d+)*")
KEPT = sorted(
    ROOT / f"recipes/results/{recipe}/metrics/{name}.json"
    for recipe in ("antsbees_photos", "flowers_resnet18", "fashion_resnet18", "fashion_fast")
    for name in load_params(ROOT / f"recipes/{recipe}.yaml").transfer
)


def rows_of(text: str) -> list[str]:
    """Return the rows of all tables, without the rules below their heads."""
    rows = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    return [re.sub(r"\]\([^)]*\)", "]", row) for row in rows]


def code_of(text: str) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_tables_of_both_readmes_have_the_same_numbers():
    english, chinese = rows_of(ENGLISH), rows_of(CHINESE)
    for row, translated in zip(english, chinese, strict=True):
        fix = f"README.zh-CN.md differs from README.md:\n{row}\n{translated}"
        assert NUMBER.findall(row) == NUMBER.findall(translated), fix


def test_sentences_of_both_readmes_have_the_same_decimals():
    english, chinese = (set(re.findall(r"\d+\.\d+", text)) for text in (ENGLISH, CHINESE))
    assert english == chinese


def test_both_readmes_have_the_same_commands_pictures_and_names_of_code():
    assert code_of(ENGLISH) == code_of(CHINESE)
    for pattern in (r"!\[.*?\]\((.*?)\)", r"\*?`([^`\n]+)`"):
        assert set(re.findall(pattern, ENGLISH)) <= set(re.findall(pattern, CHINESE)), pattern


@pytest.mark.parametrize(
    "path", ["README.zh-CN.md", "docs/zh/tutorials.md", "docs/explained/README.md"]
)
def test_links_lead_somewhere(path):
    file = ROOT / path
    for link in re.findall(r"\]\(([^)#]+)", file.read_text(encoding="utf-8")):
        assert link.startswith("https://") or (file.parent / link).exists(), link


@pytest.mark.parametrize("metrics", KEPT, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_results_of_the_tutorials_are_the_kept_ones(metrics):
    means = json.loads(metrics.read_text())
    name = "fashion_fast" if metrics.stem == "fast" else metrics.stem
    cells = f"| {points(means['val']['accuracy'])} | {points(means['test']['accuracy'])} |"
    assert any(f"`{name}`" in row and cells in row for row in TUTORIALS.splitlines()), cells


def test_what_a_new_split_pretends_is_what_was_kept():
    means = pd.read_csv(ROOT / "docs/explained/redrawn_split.csv").groupby("variant").mean()
    for name in ("first", "same_split", "redrawn_split"):
        row = 100 * means.loc[name]
        leaked = f"{row['val_leaked']:.0f}"
        assert f"| {row['val_accuracy']:.1f} | {row['test_accuracy']:.1f} | {leaked} |" in TUTORIALS
