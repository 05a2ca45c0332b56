"""Define the `resnets` command: params, check, fetch, predict, compare and others."""

import sys
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Exit, Option, Typer

from resnets.system.errors import EnvironmentFault, run_app
from resnets.system.runtime import Engine

Precision = Literal["fp32", "bf16", "auto"]
PHOTOS = "A folder, zip or tar of class folders, a .csv of path and label, or IDX files."

app = Typer(no_args_is_help=True, pretty_exceptions_enable=False)


def show_version(is_asked: bool) -> None:
    """Print the version of the installed package and end."""
    if is_asked:
        from importlib.metadata import version

        print(f"resnets {version('resnets')}")
        raise Exit


@app.callback()
def program(
    version: Annotated[
        bool, Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train, transfer, compare and ship image classifiers of the ResNet family.

    The pipeline itself runs with `dvc repro`.
    """


@app.command(
    epilog="Examples:\n\nresnets summary resnet20 --size 32 --classes 10 --layers\n\n"
    "resnets summary resnet18 --channels 1 --classes 10 --stem pad2 --conv-bias"
)
def summary(
    name: str,
    size: Annotated[int, Option(min=1, max=65536, help="Side of the square image.")] = 224,
    channels: Annotated[int, Option(min=1, help="Channels of the image.")] = 3,
    classes: Annotated[int, Option(min=1, help="Classes of the head.")] = 1000,
    stem: Annotated[str | None, Option(help="imagenet, small, pad2 or floor_pool.")] = None,
    shortcut: Annotated[str | None, Option(help="projection, pad, pad_centered, none.")] = None,
    stride_on: Annotated[str, Option(help="conv3x3 or conv1x1.")] = "conv3x3",
    conv_bias: Annotated[bool, Option(help="Convolutions with a bias.")] = False,
    top: Annotated[bool, Option(help="With the head.")] = True,
    layers: Annotated[bool, Option("--layers", help="One row per layer.")] = False,
) -> None:
    """Print a network's output shapes, parameters and multiply-adds, per stage or layer.

    Two 3×3 convolutions on 256 channels have 1,179,648 weights (layer3 of resnet34),
    the 256-64-64-256 bottleneck has 69,632 (layer1 of resnet50).
    """
    from resnets.models.summary import print_summary

    options = {"num_classes": classes, "in_channels": channels, "stem": stem, "shortcut": shortcut}
    options |= {"stride_on": stride_on, "conv_bias": conv_bias, "include_top": top}
    print_summary(name, size, layers=layers, **options)


@app.command(epilog="Examples:\n\nresnets params\n\nresnets params transfer.finetune")
def params(
    section: Annotated[str, Argument(help="A section by its dotted key; all if absent.")] = "",
    file: Annotated[Path, Option(help="The parameters.")] = Path("params.yaml"),
) -> None:
    """Print the parameters as the stages see them: shared values and defaults filled in."""
    from resnets.params.load import print_params

    print_params(file, section)


@app.command(epilog="Examples:\n\nresnets check photos.zip\n\nresnets check data/raw/fashion_mnist")
def check(
    path: Annotated[Path, Argument(help=PHOTOS)],
) -> None:
    """Judge every image of a dataset: classes, sizes, formats, and all that is wrong.

    Takes checks.max_megapixels from a params.yaml in this folder. Ends with exit code 3 if
    something would stop `prepare`.
    """
    from resnets.data.check import MAX_MEGAPIXELS
    from resnets.data.check import check as check_dataset
    from resnets.params import load_params

    params = Path("params.yaml")
    limit = load_params(params).checks.max_megapixels if params.is_file() else MAX_MEGAPIXELS
    check_dataset(path, max_megapixels=limit)


@app.command(
    epilog="Examples:\n\nresnets init ~/photos\n\nresnets init photos.zip --fast\n\n"
    "resnets init photos/labels.csv\n\n"
    "resnets init ../photos --backbone ../other/artifacts/backbone/model.safetensors"
)
def init(
    photos: Annotated[Path, Argument(help=PHOTOS)],
    backbone: Annotated[
        Path | None, Option(help="A bundle or weights file; else data/weights, or fetched.")
    ] = None,
    fast: Annotated[bool, Option("--fast", help="Less than half the steps, smaller.")] = False,
    best: Annotated[bool, Option("--best", help="2.5 times the steps, larger.")] = False,
    force: Annotated[bool, Option("--force", help="Also where Git lacks its changes.")] = False,
    offline: Annotated[bool, Option("--offline", help="Fetch no ImageNet weights.")] = False,
    exclude_findings: Annotated[
        bool, Option("--exclude-findings", help="Leave out what `check` lists as odd.")
    ] = False,
) -> None:
    """Look at photos and write a params.yaml for them, so that `dvc repro` needs no edit.

    Says what it found, what it chose and why, and how long `dvc repro` will take here. The old
    params.yaml is kept beside the new one; if it has changes that Git lacks, --force is needed.
    """
    from resnets.setup.write import init as write_params
    from resnets.system.errors import ParamsError

    if fast and best:
        raise ParamsError("--fast and --best exclude each other", "give one of them, or none")
    effort: Literal["fast", "normal", "best"] = "fast" if fast else "best" if best else "normal"
    write_params(
        photos,
        backbone=backbone,
        effort=effort,
        force=force,
        offline=offline,
        exclude_findings=exclude_findings,
    )


@app.command(
    epilog="Examples:\n\nresnets import-check data/weights/resnet20.th.pth --data cifar/test\n\n"
    "resnets import-check w.safetensors --data photos.zip --order imagenet_classes.txt"
)
def import_check(
    weights: Annotated[Path, Argument(help="A file that backbone.input may name.")],
    data: Annotated[Path, Option(help="Labelled images: class folders, an archive, IDX.")],
    order: Annotated[Path | None, Option(help="Text file: the head's classes in order.")] = None,
    params: Annotated[Path, Option(help="Says network and size.")] = Path("params.yaml"),
) -> None:
    """Score foreign weights on labelled images before anything is trained on them.

    Class folders are called by their number in the head, or sorted, or --order says their places.
    Networks that a file cannot tell apart are all tried, such as both ways to pad a shortcut.
    Ends with exit code 4 if another one is better, or none is better than chance.
    """
    from resnets.params import load_params

    values = load_params(params)
    from resnets.predict.import_check import check_import, read_lines
    from resnets.system.runtime import resolve_device
    from resnets.training.publish import full_preprocess

    check_import(
        weights,
        data,
        network=values.model,
        preprocess=full_preprocess(values.data, values.preprocess, values.model.in_channels),
        order=read_lines(order) if order else None,
        max_megapixels=values.checks.max_megapixels,
        device=resolve_device(values.runtime.device),
    )


@app.command(
    epilog="Examples:\n\nresnets fetch fashion_mnist --from /usr/share/datasets/fashion-mnist\n\n"
    "resnets fetch resnet18-f37072fd.pth"
)
def fetch(
    name: Annotated[str | None, Argument(help="What to fetch; without it, a list of all.")] = None,
    source: Annotated[Path | None, Option("--from", help="A local file or folder.")] = None,
    sha256: Annotated[str | None, Option(help="The checksum to insist on.")] = None,
    about: Annotated[bool, Option("--about", help="Only say where it comes from.")] = False,
) -> None:
    """Bring a dataset or published weights to data/, verified; lists what there is."""
    from resnets.data.fetch import fetch_by_name

    fetch_by_name(name, Path("data"), source=source, sha256=sha256, about=about)


@app.command(epilog="Example:\n\nresnets sweep sweep.yaml && dvc queue start")
def sweep(
    file: Annotated[Path, Argument(help="What to try: see sweep.yaml.")] = Path("sweep.yaml"),
) -> None:
    """Queue experiments with values drawn from ranges, and rank those that are done.

    Run it again at any time: it queues only what is missing, and lists what is done by the mean
    validation accuracy over the seeds; it never looks at the test.
    """
    from resnets.sweep.trials import sweep as try_ranges

    for block in try_ranges(file):
        print(f"{block}\n")


@app.command(
    epilog="Examples:\n\nresnets compare HEAD~1 HEAD\n\n"
    "resnets compare main --gate --report reports/review.md"
)
def compare(
    base: Annotated[str, Argument(help="A commit, branch, tag or experiment.")],
    head: Annotated[str | None, Argument(help="Another one; else what lies here.")] = None,
    gate: Annotated[bool, Option("--gate", help="Exit 1 if gates.yaml is broken.")] = False,
    report: Annotated[Path | None, Option(help="Markdown file for the whole report.")] = None,
) -> None:
    """Say of each model if it became better, worse, or neither beyond noise.

    Compares the committed predictions image by image, with paired tests that allow for the
    spread from seed to seed; needs neither the data nor the models. Results that are older than
    their parameters or their code are named, and not judged.
    """
    from resnets.review.page import review

    for block in review(base, head, gate=gate, report=report, root=Path()):
        print(f"{block}\n")


@app.command(epilog="Examples:\n\nresnets table\n\nresnets table main")
def table(
    commit: Annotated[str, Argument(help="The commit that the experiments branch off.")] = "HEAD",
) -> None:
    """Show experiments: the parameters and the scores that differ, in at most 160 columns.

    Of each model: accuracy (acc), macro F1 and nll on the test, accuracy on validation (val), means
    over all runs; in percent, but for nll.
    """
    from resnets.review.experiments import experiment_table

    print(experiment_table(Path(), commit))


@app.command(
    epilog="Examples:\n\nresnets predict photos/ more.zip 'scans/*.png' --output answers.csv\n\n"
    "find . -name '*.jpg' | resnets predict - --threshold 0.8 --output answers.json\n\n"
    "resnets predict photos/ --model artifacts/finetune/model.safetensors --explain heat/"
)
def predict(
    inputs: Annotated[list[str], Argument(help="Files, folders, globs, archives, or -.")],
    model: Annotated[Path | None, Option(help="Else the exported one, int8 if made.")] = None,
    output: Annotated[Path | None, Option("--output", "-o", help=".csv or .json.")] = None,
    raw: Annotated[bool, Option("--raw", help="Names in a CSV as they are.")] = False,
    top: Annotated[int, Option(min=1, help="Classes to print for each image.")] = 3,
    threshold: Annotated[float, Option(min=0, max=1, help="Below it, answers are unsure.")] = 0.0,
    plot: Annotated[Path | None, Option(help="Folder for titled pictures.")] = None,
    explain: Annotated[Path | None, Option(help="Folder for Grad-CAM overlays.")] = None,
    features: Annotated[
        Path | None, Option(help=".npy for the penultimate features, .csv for its names.")
    ] = None,
    batch_size: Annotated[int, Option(min=1, help="Images computed at once.")] = 32,
    device: Annotated[str, Option(help="auto, cpu, cuda or mps; ONNX uses the CPU.")] = "auto",
    engine: Annotated[Engine, Option(help="For ONNX, auto prefers OpenVINO.")] = "auto",
    precision: Annotated[Precision, Option(help="auto is bf16 where it is faster.")] = "auto",
    shard: Annotated[str, Option(help="3/16: the third of sixteen parts of the inputs.")] = "1/1",
) -> None:
    """Classify images with calibrated probabilities; needs nothing but the model file.

    Every input gets a row. Ends with exit code 3 if some could not be read. In bf16, answers that
    are close are settled in fp32. The rows of all shards together are those of one run.

    torch computes .safetensors files; OpenVINO, if installed, or ONNX Runtime .onnx files.

    In a CSV, a name that a spreadsheet would compute (it starts with =, +, - or @) has a quote '
    in front, and control characters are escaped; --raw and JSON leave names as they are.
    """
    from resnets.predict.answers import Reports
    from resnets.predict.inputs import parse_shard
    from resnets.predict.run import predict as predict_images

    reports = Reports(output, features, plot, explain, top, threshold, raw)
    predict_images(
        inputs,
        sys.stdin.buffer,
        model=model,
        reports=reports,
        batch_size=batch_size,
        device=device,
        engine=engine,
        precision=precision,
        shard=parse_shard(shard),
    )


@app.command(
    epilog="Examples:\n\nresnets serve\n\nresnets serve --model model.onnx --port 9000\n\n"
    "curl -F image=@photo.jpg -F image=@other.png http://127.0.0.1:8000/predict"
)
def serve(
    model: Annotated[Path | None, Option(help="Else the exported one, int8 if made.")] = None,
    host: Annotated[str, Option(help="Address to listen at; 0.0.0.0 is all.")] = "127.0.0.1",
    port: Annotated[int, Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    max_megabytes: Annotated[float, Option(min=0.001, help="Of one request.")] = 32,
    max_images: Annotated[int, Option(min=1, help="Of one request.")] = 64,
    max_megapixels: Annotated[float, Option(min=0.001, help="Of one image.")] = 50,
    max_seconds: Annotated[float, Option(min=0.1, help="To send a request; to answer it.")] = 30,
    max_waiting: Annotated[int, Option(min=1, help="Images of all requests; more get 429.")] = 256,
    engine: Annotated[Engine, Option(help="As for `predict`.")] = "auto",
) -> None:
    """Classify images over HTTP, with the answers of `predict`: POST them to /predict.

    /docs describes the rest. There are no users and no encryption: leave both to a proxy. SIGTERM
    ends the server once the requests under way are answered.
    """
    try:
        from resnets.serve.limits import Limits
        from resnets.serve.run import serve as run_server
    except ModuleNotFoundError as error:
        fix = "python -m pip install '.[serve]'"
        raise EnvironmentFault(f"the package {error.name} is missing", fix) from None
    limits = Limits(max_megabytes, max_images, max_megapixels, max_seconds, max_waiting)
    run_server(model, host, port, limits, engine)


def main() -> None:
    """Run the command line."""
    run_app(app)


if __name__ == "__main__":
    main()
