"""Change labels between two revisions, and hold what `resnets compare` says to what was changed."""

import json

import numpy as np
import pytest

from resnets.review.labels import TABLE, label_changes, labels_of
from resnets.review.page import review
from resnets.review.revisions import read_revision
from resnets.system.errors import ArtefactError
from tests.projects import Project

CLASSES = ["ant", "bee"]
TEST = {"ant/1.png": "ant", "ant/2.png": "ant", "bee/3.png": "bee", "bee/4.png": "bee"}
REST = {"ant/5.png": "ant", "bee/6.png": "bee", "bee/7.png": "bee"}


def write_labels(project: Project, test, rest, suspects) -> None:
    """Commit a revision with a model's answers to the test and a table of the other labels."""
    numbers = np.array([CLASSES.index(label) for label in test.values()])
    project.write_model("net", [np.eye(2)[numbers]], numbers, CLASSES, ids=list(test))
    sides = {"train": len(rest), "val": 0, "test": len(test)}
    project.write("metrics/split_target.json", json.dumps({"images": sides}))
    labels = test | rest
    rows = [f"{name},train,{labels[name]},ant,0.1,{name in suspects}," for name in rest]
    rows += [f"{name},test,{labels[name]},ant,0.1,True," for name in suspects if name in test]
    header = "id,side,label,suggested,confidence,suspected,near_source"
    project.write(TABLE, "\n".join([header, *rows]) + "\n")
    project.commit()


@pytest.fixture
def project(tmp_path) -> Project:
    project = Project(tmp_path / "project")
    write_labels(project, TEST, REST, ["bee/3.png", "bee/6.png", "bee/7.png"])
    project.git("switch", "-q", "-c", "change")
    return project


def changes(project: Project) -> tuple[str, list[str]]:
    """Return the sentence and the rows of the table."""
    sides = [read_revision(name, project.root) for name in ("main", "change")]
    said, table = label_changes(*sides)
    rows = [line for line in "\n".join(table).splitlines() if line.startswith("| `")]
    return "".join(said), [" ".join(row.replace("|", " ").split()) for row in rows]


def test_without_a_change_nothing_is_said(project):
    assert changes(project) == ("", [])
    assert labels_of(read_revision("main", project.root)) == TEST | REST


def test_moved_and_removed_images_and_new_suspects_are_named(project):
    rest = {"ant/5.png": "ant", "ant/6.png": "ant"}  # bee/6.png was moved, bee/7.png left out
    write_labels(project, TEST, rest, ["bee/3.png", "ant/5.png"])
    said, rows = changes(project)
    assert said.startswith("**Labels**: 1 changed, of 6 images whose label both show; 2 are no l")
    assert said.endswith("no longer suspected, 1 newly.")
    assert rows == [
        "`ant/5.png` `ant` `ant` newly",
        "`bee/6.png` `bee` `ant` no longer",
        "`bee/7.png` `bee` – no longer",
    ]
    page = "\n\n".join(review("main", "change", gate=False, report=None, root=project.root))
    assert said in page
    assert page.index("## Labels") > page.index("## Gates")


def test_a_label_changed_in_a_table_is_found_by_the_name(project):
    write_labels(project, TEST, REST | {"bee/6.png": "ant"}, ["bee/3.png", "bee/6.png"])
    said, rows = changes(project)
    assert "1 changed, of 7 images" in said
    assert rows == ["`bee/6.png` `bee` `ant` still", "`bee/7.png` `bee` `bee` no longer"]


def test_a_namesake_of_another_class_is_no_moved_image(project):
    """An image that the tables do not name may still be there."""
    write_labels(project, TEST, {"ant/5.png": "ant", "ant/6.png": "ant"}, ["ant/6.png"])
    sides = {"images": {"train": 50, "val": 0, "test": 4}}
    project.write("metrics/split_target.json", json.dumps(sides))
    project.commit()
    said, rows = changes(project)
    assert "0 changed, of 5 images" in said
    assert "`ant/6.png` – `ant` newly" in rows


def test_other_and_older_tables(project):
    project.write(TABLE, "nothing\n")
    project.commit()
    with pytest.raises(ArtefactError, match=r"labels\.csv at change: lacks columns"):
        changes(project)
    (project.root / TABLE).unlink()
    project.commit()
    assert changes(project) == ("", [])
