"""Hold the workflows to what they may use."""

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

WORKFLOWS = sorted((Path(__file__).parents[1] / ".github/workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_use_no_third_party_and_interpolate_nothing_into_a_shell(path):
    workflow = YAML(typ="safe", pure=True).load(path)
    assert workflow["permissions"]["contents"] == "read"
    for job in workflow["jobs"].values():
        for step in job["steps"]:
            assert step.get("uses", "actions/x").startswith("actions/")
            # a branch may be called `$(…)`: values reach a script through the environment only
            assert "${{" not in step.get("run", "")
            assert "${{" not in step.get("with", {}).get("script", "")


def test_review_runs_our_commands():
    text = (WORKFLOWS[0].parent / "review.yml").read_text()
    assert "python -m resnets.review.stale" in text
    assert re.search(r"resnets compare .* --gate --report review\.md", text)
    assert "dvc pull" not in text
