"""Run a recipe in a clone of the last commit, and keep its numbers as files for Git.

    python recipes/run.py fashion_fast    run it, fill recipes/results/fashion_fast, then as below
    python recipes/run.py                 write the tables of README.md and recipes/README.md

The clone lies beside the project, so that nothing here is overwritten; a run that was stopped
continues in it, with the code of its commit, and a finished one removes it. Nothing with pixels of
anybody's photos is kept.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from ruamel.yaml import YAML

from resnets.data.catalogue import all_items
from resnets.evaluation.markdown import code, points, table
from resnets.params import load_params
from resnets.params.schema import NO_BACKBONE
from resnets.system.errors import EnvironmentFault, ParamsError, run_app
from resnets.system.files import write_bytes, write_json, write_text

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "recipes" / "results"
KEPT = (
    "metrics/*.json",
    "plots/*/details.json",
    "plots/*/history.csv",
    "reports/leaderboard.md",
    "reports/curves.png",
)
# what other recipes start from; not for Git: weights of anybody's photos
WEIGHTS = {"photos_backbone": "artifacts/photos/model.safetensors"}
OF_THE_DEFAULT = ("metrics", "plots", "reports", "dvc.lock", "params.yaml")
LOG = "run.log"
BEGIN, END = "<!-- written by recipes/run.py -->", "<!-- until here -->"
# the last line of a training run (training/show.py)
ENDED = re.compile(
    r"^(\S+)(?: \d+)?(?: fold \w+)?: epoch [^,]*, "
    r"(?:(\d+) days?, )?(?:(\d+):)?(\d+):(\d\d) in all$",
    re.MULTILINE,
)
CONTINUED = re.compile(r"^(\S+)(?: \d+)?(?: fold \w+)?: continuing at", re.MULTILINE)


def check_inputs(recipe: Path) -> None:
    """Raise EnvironmentFault that says how to fetch what a recipe needs and is not there."""
    if not recipe.is_file():
        names = sorted(
            path.stem for path in recipe.parent.glob("*.yaml") if path.stem != "published"
        )
        raise ParamsError(f"no recipe is called {recipe.stem!r}", f"there are {', '.join(names)}")
    values = load_params(recipe)
    wanted = [Path(task.path) for task in values.tasks.values()]
    if values.backbone.input != NO_BACKBONE and not values.backbone.input.startswith("data/tasks"):
        wanted.append(Path(values.backbone.input))
    for path in wanted:
        if (ROOT / path).exists():
            continue
        fetched = [
            name
            for name, item in all_items().items()
            if path in (Path("data", item.folder), *item.paths(Path("data")).values())
        ]
        fix = f"put it there, or name another place in {recipe.name}"
        if fetched:
            command = f"resnets fetch {fetched[0]}"
            fix = f"{command} (without a network: {command} --from FILE_OR_FOLDER)"
        raise EnvironmentFault(f"{recipe.stem}: {path} is missing", fix)


def git(*arguments: str, cwd: Path = ROOT) -> str:
    """Run git and return what it prints."""
    done = subprocess.run(["git", *arguments], cwd=cwd, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def make_clone(name: str) -> Path:
    """Return the clone of the last commit with the recipe as params.yaml, made if need be."""
    recipe = f"recipes/{name}.yaml"
    if changed := git("status", "--porcelain", "--", "src", "dvc.yaml", recipe):
        raise ParamsError(f"not committed: {changed}", "commit it, so that results have a commit")
    clone = ROOT.with_name(f"{ROOT.name}-{name}")
    if clone.exists():
        if not (clone / LOG).exists():  # nothing of ours, or never made to the end
            raise EnvironmentFault(f"{clone} is in the way", "move or remove it")
        print(f"continuing in {clone}; remove it to start afresh with the last commit")
        return clone
    git("clone", "--quiet", str(ROOT), str(clone))
    for path in OF_THE_DEFAULT:
        shutil.rmtree(clone / path, ignore_errors=True)
        (clone / path).unlink(missing_ok=True)
    shutil.copy(clone / recipe, clone / "params.yaml")
    for shared in ("data/raw", "data/weights"):
        if (ROOT / shared).exists():
            (clone / shared).symlink_to(ROOT / shared)
    (clone / LOG).touch()
    return clone


def run_in(clone: Path, *command: str) -> None:
    """Run a command in the clone with this Python, on screen and into its log."""
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": tools, "PYTHONPATH": str(clone / "src")}
    environment["PYTHONUNBUFFERED"] = "1"  # a line for each epoch when it ends, not at the end
    with (clone / LOG).open("a", buffering=1) as log, subprocess.Popen(
        command, cwd=clone, env=environment, text=True, stdout=subprocess.PIPE
    ) as process:  # fmt: skip
        for line in process.stdout or ():
            print(line, end="", flush=True)
            log.write(line)
    if process.returncode:
        raise SystemExit(process.returncode)


def machine() -> str:
    """Name the device that trained."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", cpuinfo.read_text() if cpuinfo.exists() else "")
    return f"{os.cpu_count()} cores of {found[1].strip() if found else 'an unknown processor'}"


def run_recipe(name: str) -> None:
    """Run a recipe to its end and keep its results."""
    recipe = ROOT / "recipes" / f"{name}.yaml"
    check_inputs(recipe)
    clone, start = make_clone(name), time.monotonic()
    run_in(clone, sys.executable, "-m", "resnets.mend")  # a stopped run is continued
    run_in(clone, "dvc", "repro")
    seconds, results = round(time.monotonic() - start), RESULTS / name
    shutil.rmtree(results, ignore_errors=True)
    for path in (path for pattern in KEPT for path in clone.glob(pattern)):
        (results / path.relative_to(clone)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, results / path.relative_to(clone))
    if name in WEIGHTS:
        (ROOT / "data/weights").mkdir(parents=True, exist_ok=True)
        weights = (clone / WEIGHTS[name]).read_bytes()
        write_bytes(ROOT / f"data/weights/{name}.safetensors", weights)
    if recipe.with_suffix(".py").exists():
        run_in(clone, sys.executable, f"recipes/{name}.py", "--out", str(results))
    log, training = (clone / LOG).read_text(), dict[str, int]()
    for variant, days, hours, minutes, rest in ENDED.findall(log):
        spent = 86400 * int(days or 0) + 3600 * int(hours or 0) + 60 * int(minutes) + int(rest)
        training[variant] = training.get(variant, 0) + spent
    record = {
        "commit": git("rev-parse", "HEAD", cwd=clone),
        "machine": machine(),
        "interrupted": sorted(set(CONTINUED.findall(log))),  # their times are of the last part
        "seconds": seconds,
        "training_seconds": training,
    }
    write_json(results / "run.json", record)
    shutil.rmtree(clone)


def read(path: Path) -> dict[str, Any]:
    """Read a JSON file."""
    values: dict[str, Any] = json.loads(path.read_text())
    return values


def rows_of(results: Path, published: dict[str, dict[str, str]]) -> list[dict[str, str]]:
    """Return a row of the table for each variant, best first as in the leaderboard."""
    run, rows = read(results / "run.json"), []
    for name, row in read(results / "metrics/leaderboard.json")["variants"].items():
        stated, seconds = published.get(name, {}), run["training_seconds"].get(name)
        spread = f" ± {points(row['seeds_std'])} (n = {row['seeds']})" if row["seeds"] > 1 else ""
        at_least = "≥ " if name in run["interrupted"] else ""
        rows.append({
            "recipe": results.name,
            "variant": code(name),
            "published": f"{stated['accuracy']} ({stated['of']})" if stated else "",
            "ours, test": f"{points(row['seeds_mean'])}{spread}",
            "95% interval": f"{points(row['test_low'])} to {points(row['test_high'])}",
            "test images": f"{row['images']:,}",
            "ours, validation": points(row["val_accuracy"]) + " leaked" * bool(row["val_leaked"]),
            "training of one seed": (
                f"{at_least}{timedelta(seconds=round(seconds / row['seeds']))}"
                if seconds is not None
                else ""
            ),
            "machine": run["machine"],
        })  # fmt: skip
    return rows


def rows_shown(
    name: str, one: dict[str, Any], kept: dict[str, list[dict[str, str]]]
) -> list[dict[str, str]]:
    """Return a tutorial's rows for the README: the best variant, and what follows the original."""
    columns = {"tutorial": one["tutorial"], "`make recipe NAME=`": code(name)}
    if name not in kept:
        stated = [f"{x['accuracy']} ({x['of']})" for x in one["published"].values()]
        needs = f"needs {one['missing']}" if "missing" in one else ""
        words = {"variant": needs, "published": "; ".join(stated), "ours, test": "not measured"}
        return [{**columns, **words}]
    rows = [row for row in kept[name] if row is kept[name][0] or "`published" in row["variant"]]
    words = ("variant", "published", "ours, test", "95% interval")
    return [
        {**columns, **{key: row[key] for key in (*words, "training of one seed", "machine")}}
        for row in rows
    ]


def table_of(rows: list[dict[str, str]], words: int) -> str:
    """Return rows as a Markdown table under the keys of the fullest, so many of them words."""
    columns = list(max(rows, key=len))
    return table(columns, [[row.get(key, "") for key in columns] for row in rows], words=words)


def write_readmes() -> None:
    """Write the table of all kept results, and that of the tutorials into the project's README."""
    published = YAML(typ="safe", pure=True).load(ROOT / "recipes" / "published.yaml")
    rows: dict[str, list[dict[str, str]]] = {}
    for folder in sorted(path.parent for path in RESULTS.glob("*/run.json")):
        rows[folder.name] = rows_of(folder, published.get(folder.name, {}).get("published", {}))
    shown = [row for name, one in published.items() for row in rows_shown(name, one, rows)]
    wrong = [f"- {code(name)}: {one['wrong']}" for name, one in published.items()]
    text = (
        "# Recipes\n\nEach file is a complete `params.yaml`; its head says what it needs. "
        "`cp recipes/NAME.yaml params.yaml && dvc repro` runs it here, `make recipe NAME=NAME` in "
        "a clone, and fills `results/`, this table and the README's.\n\n"
        f"{table_of([row for of_one in rows.values() for row in of_one], 3)}\n\n"
        "Accuracies in percent. Published numbers are those of `published.yaml`; most variants "
        "have none. Ours are on test "
        "images that chose nothing; the interval is that of the first seed over other images, ± "
        "the standard deviation from seed to seed. A leaked validation number counts images that "
        "were trained on, as the original's does. ≥: the run was stopped and continued; its last "
        "part took so long. Of `frozen_bn` only the epochs are counted, not the features computed "
        "once before them: the kept runs are older than the clock that counts both.\n\n"
        "What the originals get wrong:\n\n" + "\n".join(wrong) + "\n"
    )
    write_text(ROOT / "recipes" / "README.md", text)
    before, rest = (ROOT / "README.md").read_text().split(BEGIN)
    _, after = rest.split(END)  # without a mark nothing is written: the text behind would be lost
    write_text(ROOT / "README.md", f"{before}{BEGIN}\n\n{table_of(shown, 4)}\n\n{END}{after}")


def main(
    name: Annotated[str | None, typer.Argument(help="A file of recipes/, without .yaml.")] = None,
) -> None:
    """Run a recipe and keep its results, or only write the tables of results."""
    if name:
        run_recipe(name)
    write_readmes()


if __name__ == "__main__":
    run_app(main)
