"""Time batch prediction of a folder of photos against a plain loop, and watch the memory.

    python benchmarks/predict.py            all photos; memory at 1,000 and 20,000 images
    python benchmarks/predict.py --quick    40 photos; memory at 200 and 2,000 images

The plain loop is fp32, batch 2, one file after the other. The weights are random.
"""

import csv
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from _timing import ROOT, compare, describe_machine, options, photos, rate, run_measured, unpack
from PIL import Image
from torchvision.transforms import v2

from resnets.export.classifier import open_classifier
from resnets.export.onnx import to_onnx
from resnets.models import build_model
from resnets.models.bundle import BundleMeta, FullPreprocess, load_bundle, save_bundle
from resnets.predict.inputs import find_inputs
from resnets.predict.run import classify
from resnets.system.runtime import num_cores

RECIPE = v2.Compose(
    [v2.Resize(256), v2.CenterCrop(224), v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
     v2.Normalize([0.5] * 3, [0.25] * 3)]
)  # fmt: skip


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
    onnx = to_onnx(load_bundle(folder / f"{name}.safetensors"), preprocess_inside=False)
    (folder / f"{name}.onnx").write_bytes(onnx.SerializeToString())
    return model


def plain_loop(model: torch.nn.Module, files: list[Path]) -> np.ndarray:
    """Return the predicted classes as most scripts compute them."""
    found = []
    with torch.no_grad():
        for start in range(0, len(files), 2):
            pictures = [Image.open(file).convert("RGB") for file in files[start : start + 2]]
            found += model(torch.stack([RECIPE(x) for x in pictures])).argmax(1).tolist()
    return np.array(found)


def ours(classifier: object, files: list[Path]) -> np.ndarray:
    """Return the predicted classes of `resnets predict`."""
    inputs = find_inputs([str(file) for file in files], ())
    answers = classify(inputs, classifier, batch_size=32)
    return np.array([int(answer.probabilities.argmax()) for answer in answers])


def measure_speed(folder: Path, quick: bool) -> None:
    """Compare the loops, and their answers."""
    files = unpack(photos(), folder / "photos", 40 if quick else None)
    model = make_model("resnet18", folder, 224)
    torch.set_num_threads(num_cores())
    bundle = folder / "resnet18.safetensors"
    opened = {
        "bundle": open_classifier(bundle),
        "bf16": open_classifier(bundle, precision="bf16"),
        "onnx": open_classifier(folder / "resnet18.onnx"),
    }
    answers = {}

    def turn(name: str, action: object) -> float:
        def run() -> None:
            answers[name] = action()

        return rate(len(files), run)

    compare(
        f"prediction of {len(files)} photos, ResNet-18, 224 px",
        {
            "plain loop": lambda: turn("plain", lambda: plain_loop(model, files)),
            "ours, bundle": lambda: turn("bundle", lambda: ours(opened["bundle"], files)),
            "ours, ONNX": lambda: turn("onnx", lambda: ours(opened["onnx"], files)),
            "ours, bundle, bf16": lambda: turn("bf16", lambda: ours(opened["bf16"], files)),
        },
        unit="images/s", rounds=1 if quick else 5, target="at least 2.5",
    )  # fmt: skip
    for name in opened:
        print(f"same top-1, {name}: {np.mean(answers[name] == answers['plain']):.1%}")


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
    """Measure both."""
    quick = options(__doc__).quick
    describe_machine()
    with tempfile.TemporaryDirectory() as name:
        measure_speed(Path(name), quick)
        measure_memory(Path(name), quick)


if __name__ == "__main__":
    main()
