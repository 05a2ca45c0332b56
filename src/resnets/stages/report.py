"""Show on one page what was found, how well it was learned, and what to do next."""

from pathlib import Path
from typing import Annotated

import typer

from resnets.system.errors import run_app
from resnets.system.files import locked, write_text


def main(
    out: Annotated[Path, typer.Option(help="HTML file for the page.")],
    root: Annotated[Path, typer.Option(help="Folder of the project.")] = Path(),
) -> None:
    """Write the report on the target task from what the other stages wrote.

    For example:
      python -m resnets.stages.report --out reports/index.html
    """
    from resnets.report.page import write_page
    from resnets.report.results import read_results

    with locked(Path(".state/report"), "report"):
        write_text(out, write_page(read_results(root)))
    print(f"open {out} in a browser")


if __name__ == "__main__":
    run_app(main)
