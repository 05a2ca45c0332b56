"""Time batch prediction of a folder of photos against a plain loop, and watch the memory.

    python benchmarks/predict.py            all photos; memory at 1,000 and 20,000 images
    python benchmarks/predict.py --quick    40 photos; memory at 200 and 2,000 images

The plain loop is fp32, one file after the other. The weights are random.
"""

import csv
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from _timing import (
    ROOT,
    alternate,
    describe_machine,
    options,
    photos,
    rate,
    record,
    run_measured,
    spread,
    unpack,
)
from PIL import Image
from torchvision.transforms import v2

from resnets.evaluation.markdown import table
from resnets.export.classifier import Classifier, open_classifier
from resnets.export.int8 import quantize_int8
from resnets.export.onnx import to_onnx
from resnets.models import build_model
from resnets.models.bundle import BundleMeta, FullPreprocess, load_bundle, save_bundle
from resnets.models.inference import normalise
from resnets.predict.inputs import find_inputs
from resnets.predict.run import classify, prepare
from resnets.system.progress import map_ahead
from resnets.system.runtime import allowed_cpus, num_cores

BATCH, CALIBRATION = 32, 64

RECIPE = v2.Compose(
    [v2.Resize(256), v2.CenterCrop(224), v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
     v2.Normalize([0.5] * 3, [0.25] * 3)]
)  # fmt: skip


def describe_engines() -> None:
    """Print which engines there are, and their versions."""
    engines = [engine for engine in ("onnxruntime", "openvino") if find_spec(engine)]
    print(", ".join(f"{engine} {version(engine)}" for engine in engines))


def make_model(name: str, folder: Path, crop: int) -> torch.nn.Module:
    """Write a bundle and its ONNX file; return the network."""
    torch.manual_seed(0)
    model = build_model(name, num_classes=5).eval()
    with torch.no_grad():
        model.fc.weight *= 20  # logits as far apart as those of a trained network
    meta = BundleMeta(
        architecture={"name": name, "num_classes": 5, "in_channels": 3},
        classes=list("abcde"),
        preprocess=FullPreprocess(
            resize=crop * 8 // 7, fit="shorter_side", channels=3, crop=crop,
            mean=[0.5] * 3, std=[0.25] * 3,
        ),
        training={"variant": "benchmark", "seed": 0},
        hashes={},
    )  # fmt: skip
    save_bundle(folder / f"{name}.safetensors", model, meta)
    onnx = to_onnx(load_bundle(folder / f"{name}.safetensors"))
    (folder / f"{name}.onnx").write_bytes(onnx.SerializeToString())
    return model


def plain_loop(model: torch.nn.Module, files: list[Path]) -> np.ndarray:
    """Return the predicted classes as most scripts compute them: fp32, one file after the other."""
    found = []
    with torch.no_grad():
        for file in files:
            picture = RECIPE(Image.open(file).convert("RGB"))
            found.append(int(model(picture[None]).argmax()))
    return np.array(found)


def ours(classifier: Classifier, files: list[Path]) -> np.ndarray:
    """Return the predicted classes of `resnets predict`."""
    inputs = find_inputs([str(file) for file in files], ())
    answers = classify(inputs, classifier, batch_size=BATCH)
    return np.array([int(answer.probabilities.argmax()) for answer in answers])


def decode_only(form: FullPreprocess, files: list[Path]) -> np.ndarray:
    """Return the crops as `resnets predict` makes them, ahead in threads."""
    cpus = len(allowed_cpus())
    answers = map_ahead(lambda file: prepare(str(file), file, form), files, workers=cpus)
    return np.stack([answer.crop for answer in answers])


def compute_only(classifier: Classifier, crops: np.ndarray) -> None:
    """Classify crops that are in memory."""
    for start in range(0, len(crops), BATCH):
        classifier.score(crops[start : start + BATCH])


def open_all(folder: Path, crops: np.ndarray) -> dict[str, Classifier]:
    """Open the files as the command does, as they are and in int8, and with ONNX Runtime."""
    exact, small = folder / "resnet18.onnx", folder / "resnet18_int8.onnx"
    quantize_int8(exact, small, list(crops[:CALIBRATION]))
    opened = {"ours": open_classifier(exact), "ours, int8": open_classifier(small)}
    opened["ours, bundle"] = open_classifier(folder / "resnet18.safetensors")
    opened["ours, ONNX Runtime"] = open_classifier(exact, engine="onnxruntime")
    return opened


def measure_speed(folder: Path, quick: bool) -> None:
    """Compare the loops, their answers, and what decoding and computing alone allow."""
    files = unpack(photos(), folder / "photos", 40 if quick else None)
    model, answers = make_model("resnet18", folder, 224), {}
    torch.set_num_threads(num_cores())
    form = load_bundle(folder / "resnet18.safetensors").meta.preprocess
    crops = decode_only(form, files)
    opened = open_all(folder, crops)

    def turn(name: str, action: Callable[[], np.ndarray]) -> float:
        return rate(len(files), lambda: answers.update({name: action()}))

    def compute(name: str) -> float:
        return rate(len(files), lambda: compute_only(opened[name], crops))

    sides = {"plain loop": lambda: turn("plain loop", lambda: plain_loop(model, files))}
    for name, classifier in opened.items():
        sides[name] = partial(turn, name, partial(ours, classifier, files))
    sides["decoding alone"] = lambda: rate(len(files), lambda: decode_only(form, files))
    for name in ("ours", "ours, int8"):
        sides[f"computing alone, {name}"] = partial(compute, name)
    values = alternate(sides, 1 if quick else 5)
    rows = [
        [name, spread(own), spread(divide(own, values["plain loop"]), 2)]
        for name, own in values.items()
    ]
    print(f"\nprediction of {len(files)} photos, ResNet-18, 224 px (aim: 4, int8 6)")
    print(table(["", "images/s", "times the plain loop"], rows))
    for name in opened:
        record(
            f"`resnets predict` of {len(files)} photos, ResNet-18 at 224 px: {name}",
            f"{spread(values[name])} images/s",
            f"plain fp32 loop, {spread(values['plain loop'])} images/s",
            divide(values[name], values["plain loop"]),
            {"ours": "4", "ours, int8": "6"}.get(name, ""),
        )
    for name in ("ours", "ours, int8"):
        alone = zip(values["decoding alone"], values[f"computing alone, {name}"], strict=True)
        limits = {"the slower one alone": min, "both on the same cores": harmonic}
        pairs = list(alone)
        for limit, function in limits.items():
            shares = divide(values[name], [function(pair) for pair in pairs])
            print(f"{name}: {spread(shares, 2)} of what is the limit of {limit}")
    for name in opened:
        print(f"same top-1, {name}: {np.mean(answers[name] == answers['plain loop']):.1%}")
    measure_latency(folder / "resnet18.onnx", opened, crops, quick)


def divide(values: list[float], others: list[float]) -> list[float]:
    """Return the ratios, turn by turn."""
    return [a / b for a, b in zip(values, others, strict=True)]


def harmonic(rates: tuple[float, float]) -> float:
    """Return the rate of doing two things one after the other."""
    return 1 / sum(1 / value for value in rates)


def measure_latency(
    path: Path, opened: dict[str, Classifier], crops: np.ndarray, quick: bool
) -> None:
    """Print how long single images take, beside bare ONNX Runtime on the same file."""
    session = onnxruntime.InferenceSession(path)
    form, tensors = opened["ours"].meta.preprocess, torch.from_numpy(crops[:16])
    planes = normalise(tensors.permute(0, 3, 1, 2).contiguous(), form.mean, form.std).numpy()
    sides = {"bare ONNX Runtime": lambda k: session.run(None, {"images": planes[k : k + 1]})}
    for name in ("ours", "ours, int8"):
        sides[name] = lambda k, name=name: opened[name].score(crops[k : k + 1])
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(32 if quick else 320):
        for name, run in sides.items():
            start = time.perf_counter()
            run(number % len(planes))
            seconds[name].append(time.perf_counter() - start)
    base = np.percentile(seconds["bare ONNX Runtime"], [50, 99])
    rows = []
    for name, own in seconds.items():
        median, last = 1000 * np.percentile(own, [50, 99])
        ratios = base * 1000 / (median, last)
        rows.append([name, f"{median:.1f}", f"{last:.1f}", f"{ratios[0]:.2f}, {ratios[1]:.2f}"])
    print(table(["one image", "median ms", "99th percentile ms", "times as fast"], rows))


def measure_start(folder: Path, quick: bool) -> None:
    """Print how long the command takes for one photo, everything included, and for --help."""
    photo = next((folder / "photos").rglob("*.jpg"))
    model = str(folder / "resnet18.onnx")
    command = [sys.executable, "-m", "resnets.cli"]
    predict = [*command, "predict", str(photo), "--model", model]
    for title, line in {"--help": [*command, "--help"], "predict, one photo": predict}.items():
        seconds = [
            run_measured(line, PYTHONPATH=str(ROOT / "src"))[0] for _ in range(2 if quick else 10)
        ]
        print(f"{title}: {spread(seconds[1:], 2)} s")


def measure_memory(folder: Path, quick: bool) -> None:
    """Print time and peak memory of the command on few and on many images."""
    files = unpack(photos("flowers_128px.zip"), folder / "flowers")
    make_model("resnet8", folder, 28)
    peaks = []
    for count in (200, 2000) if quick else (1000, 20_000):
        many = folder / str(count)
        many.mkdir()
        for number in range(count):
            os.link(files[number % len(files)], many / f"{number}.jpg")
        command = [sys.executable, "-m", "resnets.cli", "predict", str(many)]
        command += ["--model", str(folder / "resnet8.onnx"), "-o", str(folder / f"{count}.csv")]
        seconds, peak = run_measured(command, PYTHONPATH=str(ROOT / "src"))
        with (folder / f"{count}.csv").open(newline="") as table:
            assert sum(1 for _ in csv.reader(table)) == count + 1
        print(f"{count:6,} images: {seconds:6.1f} s, peak memory {peak:.0f} MB")
        peaks.append(peak)
    print(f"difference: {peaks[1] - peaks[0]:.0f} MB (target: at most 100)")


def main() -> None:
    """Measure speed, start and memory."""
    quick = options(__doc__).quick
    describe_machine()
    describe_engines()
    with tempfile.TemporaryDirectory() as name:
        measure_speed(Path(name), quick)
        measure_start(Path(name), quick)
        measure_memory(Path(name), quick)


if __name__ == "__main__":
    main()
