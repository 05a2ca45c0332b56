"""Run the benchmarks of speed and write their results into docs/performance.md, one table.

    python benchmarks/run.py                         all of them (two hours on two cores)
    python benchmarks/run.py training_step prepare   only these; the page keeps the others' rows
    python benchmarks/run.py --quick                 short and rough; the page stays

Rows live as JSON in benchmarks/results.json, under the name of their script.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from _timing import ROOT, ROWS

from resnets.evaluation.markdown import table

SCRIPTS = (
    *("predict", "training_step", "time_to_accuracy", "frozen", "processes", "prepare"),
    *("serve", "small_changes", "cost_curves"),
)
COLUMNS = ("what", "ours", "peer", "ratio", "limit", "machine")
RESULTS, PAGE = ROOT / "benchmarks/results.json", ROOT / "docs/performance.md"
START, END = "<!-- measured: benchmarks/run.py writes this table -->", "<!-- end of it -->"


def run(script: str, *arguments: str) -> list[dict[str, str]]:
    """Run a script to its end and return its rows; what it prints is seen."""
    print(f"== {script}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        rows = Path(name) / "rows"
        rows.touch()
        command = [sys.executable, str(ROOT / f"benchmarks/{script}.py"), *arguments]
        subprocess.run(command, env={**os.environ, ROWS: str(rows)}, check=True)
        return [json.loads(line) for line in rows.read_text().splitlines()]


def write_page(results: dict[str, list[dict[str, str]]]) -> None:
    """Put the table between its marks."""
    lines = [[row[key] for key in COLUMNS] for rows in results.values() for row in rows]
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    _, end, after = rest.partition(END)
    assert end, f"{PAGE} has no line {END}"
    text = f"{before}{START}\n\n{table(COLUMNS, lines)}\n\n{END}{after}"
    PAGE.write_text(text, encoding="utf-8")


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scripts", nargs="*", choices=[*SCRIPTS, []])
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    results = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    for script in given.scripts or SCRIPTS:
        found = run(script, *(["--quick"] if given.quick else []))
        if found and not given.quick:
            ordered = {**results, script: found}
            results = {name: ordered[name] for name in SCRIPTS if name in ordered}
            text = json.dumps(results, indent=1, ensure_ascii=False)
            RESULTS.write_text(f"{text}\n", encoding="utf-8")
            write_page(results)


if __name__ == "__main__":
    main()
