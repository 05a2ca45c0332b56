"""Rank the variants by validation, and show what the test says of them."""

from pathlib import Path
from typing import Annotated

import typer

from resnets.system.errors import run_app
from resnets.system.files import locked, write_json, write_text


def main(
    candidates: Annotated[Path, typer.Option(help="Folder with a folder for each variant.")],
    yardsticks: Annotated[Path, typer.Option(help="CSV file of what the variants must beat.")],
    metrics: Annotated[Path, typer.Option(help="JSON file for the ranking.")],
    report: Annotated[Path, typer.Option(help="Markdown file for the ranking.")],
    curves: Annotated[Path, typer.Option(help="PNG file for all learning curves.")],
    params: Annotated[Path, typer.Option(help="The parameters.")] = Path("params.yaml"),
) -> None:
    """Rank all variants of params.yaml.

    For example:
      python -m resnets.stages.leaderboard --candidates artifacts/candidates
        --yardsticks artifacts/yardsticks.csv --metrics metrics/leaderboard.json
        --report reports/leaderboard.md --curves reports/curves.png
    """
    from resnets.params import load_params

    variants = list(load_params(params).transfer)
    import pandas as pd

    from resnets.evaluation.leaderboard import rank, read_standing, remove_others
    from resnets.evaluation.plots import plot_curves

    standings = {name: read_standing(candidates / name) for name in variants}
    ranking, page = rank(standings, pd.read_csv(yardsticks, dtype={"right": str}))
    histories = {name: standing.history for name, standing in standings.items()}
    table = pd.concat(histories, names=["variant"]).reset_index(level=0)
    with locked(Path(".state/leaderboard"), "leaderboard"):
        remove_others(candidates, variants)
        write_json(metrics, ranking)
        write_text(report, page)
        write_text(curves.with_suffix(".csv"), table.to_csv(index=False, lineterminator="\n"))
        plot_curves(histories, curves)


if __name__ == "__main__":
    run_app(main)
