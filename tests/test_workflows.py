"""Hold the workflows to what they may use, and let the one that writes comment."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

WORKFLOWS = sorted((Path(__file__).parents[1] / ".github/workflows").glob("*.yml"))
BY_NAME = {path.stem: YAML(typ="safe", pure=True).load(path) for path in WORKFLOWS}


def granted(*levels):
    """Return what may be written, of the permissions of a workflow and of a job."""
    return {name for level in levels for name, access in level.items() if access != "read"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_and_nothing_is_interpolated_into_a_script(path):
    uses = re.findall(r"^ +-? *uses: (.*)$", path.read_text(), re.MULTILINE)
    steps = [step for job in BY_NAME[path.stem]["jobs"].values() for step in job["steps"]]
    assert len(uses) == len([step for step in steps if "uses" in step]) > 0
    for line in uses:  # the version is for people and for what proposes updates
        assert re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)
    for step in steps:
        # a branch may be called `$(…)`: values reach a script through the environment only
        assert "${{" not in step.get("run", "")
        assert "${{" not in step.get("with", {}).get("script", "")
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("name", BY_NAME)
def test_what_runs_a_change_may_only_read_and_what_writes_runs_no_code(name):
    workflow = BY_NAME[name]
    assert "pull_request_target" not in workflow["on"]
    for job in workflow["jobs"].values():
        if granted(workflow["permissions"], job.get("permissions", {})):
            assert list(workflow["on"]) == ["workflow_run"]  # as it is on main
            actions = [step["uses"].split("@")[0] for step in job["steps"]]
            assert actions == ["actions/download-artifact", "actions/github-script"]


def test_one_workflow_writes_comments_and_nothing_else():
    writing = {
        name: granted(*(j.get("permissions", {}) for j in workflow["jobs"].values()))
        for name, workflow in BY_NAME.items()
    }
    assert writing == {"comment": {"pull-requests"}, "review": set(), "tests": set()}
    assert BY_NAME["comment"]["on"]["workflow_run"]["workflows"] == [BY_NAME["review"]["name"]]


def test_review_writes_its_report_outside_of_the_checkout_and_keeps_it():
    steps = BY_NAME["review"]["jobs"]["review"]["steps"]
    commands = "\n".join(step.get("run", "") for step in steps)
    written = re.findall(r"resnets compare [^\n]* --gate \\\n +--report \"(.*)\"", commands)
    assert written == ["$RUNNER_TEMP/review/review.md"]
    assert "dvc pull" not in commands
    (kept,) = [step["with"] for step in steps if "upload-artifact" in step.get("uses", "")]
    (taken,) = [
        step["with"]
        for step in BY_NAME["comment"]["jobs"]["comment"]["steps"]
        if "download-artifact" in step["uses"]
    ]
    assert kept["path"] == taken["path"] == "${{ runner.temp }}/review"
    assert kept["name"] == taken["name"]


# what GitHub's client offers to the script, as far as the script uses it
CLIENT = """
const {pulls, comments, run} = JSON.parse(process.argv[1]);
const done = [];
const context = {repo: {owner: 'us', repo: 'nets'}, payload: {workflow_run: run}};
const core = {notice: text => done.push(['notice', text])};
const github = {
  paginate: async (list, query) => list(query),
  rest: {
    pulls: {list: query => pulls.filter(one => one.label === query.head)},
    issues: {
      listComments: query => comments[query.issue_number] ?? [],
      updateComment: async query => done.push(['update', query.comment_id, query.body]),
      createComment: async query => done.push(['create', query.issue_number, query.body]),
    },
  },
};
(async () => { SCRIPT })().then(() => console.log(JSON.stringify(done)));
"""
RUN = {
    "head_branch": "wider",
    "head_sha": "c0ffee",
    "html_url": "https://example.test/7",
    "head_repository": {"owner": {"login": "fork"}},
}
PULLS = [
    {"number": 1, "label": "us:wider", "head": {"sha": "c0ffee"}},
    {"number": 2, "label": "fork:wider", "head": {"sha": "0ld"}},
    {"number": 3, "label": "fork:wider", "head": {"sha": "c0ffee"}},
]


@pytest.fixture
def comment(tmp_path):
    """Run the script on a report; return what it did on GitHub."""
    if not (node := shutil.which("node")):
        pytest.skip("no node, which runs the script of comment.yml")
    folder = tmp_path / "review"
    folder.mkdir()
    script = BY_NAME["comment"]["jobs"]["comment"]["steps"][-1]["with"]["script"]

    def run_script(report, *, pulls=PULLS, comments=(), **run):
        if report is not None:
            (folder / "review.md").write_text(report, encoding="utf-8")
        event = {"pulls": pulls, "comments": {3: list(comments)}, "run": {**RUN, **run}}
        command = [node, "-e", CLIENT.replace("SCRIPT", script), json.dumps(event)]
        done = subprocess.run(
            command, env={"RUNNER_TEMP": str(tmp_path)}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run_script


def test_comment_is_written_once_and_then_kept_up_to_date(comment):
    report = "# `a` → `b`\n\n![Images that broke](review.net.png)\n\nend\n"
    ((how, number, body),) = comment(report)
    assert (how, number) == ("create", 3)  # of the fork's commit, and no other
    marker = body.split("\n")[0]
    assert body.startswith(f"{marker}\n# `a` → `b`\n\n")
    assert "Pictures: `review.net.png` in the artifact `review`.\n\nend" in body
    assert "![" not in body
    assert RUN["html_url"] in body
    by_bot = {"user": {"login": "github-actions[bot]"}, "id": 9, "body": body}
    by_stranger = {"user": {"login": "someone"}, "id": 8, "body": body}
    assert [x[:2] for x in comment(report, comments=[by_stranger, by_bot])] == [["update", 9]]
    assert [x[:2] for x in comment(report, comments=[by_stranger])] == [["create", 3]]


def test_nothing_is_commented_without_a_report_or_an_open_pull_request(comment, tmp_path):
    for case in (
        {"report": None},
        {"report": "x", "head_sha": "newer"},
        {"report": "x", "head_repository": None},
        {"report": "x" * 60_001},
    ):
        assert [how for how, *_ in comment(**case)] == ["notice"]
    (tmp_path / "secret").write_text("of the runner")
    (tmp_path / "review/review.md").unlink()
    (tmp_path / "review/review.md").symlink_to(tmp_path / "secret")
    assert [how for how, *_ in comment(None)] == ["notice"]
