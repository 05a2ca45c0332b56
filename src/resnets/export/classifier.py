"""Open a trained model, bundle or ONNX file, as one thing: uint8 crops in, probabilities out.

An ONNX file is opened without torch. Both kinds give the same answers: classes, preprocessing and
temperature come from the file, and everything but the network itself is shared.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resnets.bundle import KEY, BundleMeta, FullPreprocess, load_bundle, parse_meta
from resnets.calibration import log_softmax
from resnets.errors import ArtefactError, ParamsError
from resnets.inference import Floats, Forward, Output, check_finite, torch_forward
from resnets.runtime import resolve_device, resolve_precision
from resnets.tasks.decode import Crops

INPUT = "images"  # of an ONNX file; its internal values are called as in `Output`
HEAD = ("model.fc.weight", "model.fc.bias")  # the head's weights in an ONNX file
# Between the two best logits. bf16 moves those of our trained models by 0.01 to 0.04 (standard
# deviation); of 2,000 answers it changed 3, and none where closer ones were computed again in fp32.
CLOSE = 0.25
REMAKE = "make it again with `dvc repro export`, or restore it with `dvc checkout`"


@dataclass(frozen=True)
class Scores:
    """Hold what a model says about N images."""

    probabilities: NDArray[np.float64]  # (N, K), calibrated
    features: Floats | None  # (N, F)
    feature_map: Floats | None  # (N, F, h, w)


@dataclass(frozen=True)
class Classifier:
    """Hold an opened model: `forward` gives `output`, and `head` turns features into logits."""

    meta: BundleMeta
    forward: Forward
    output: str  # one of `Output`, or probabilities
    head: tuple[Floats, Floats] | None  # weight (K, F) and bias (K,); needed for features

    def score(self, crops: Crops) -> Scores:
        """Classify uint8 crops (N, crop, crop, C); raise NumericalError for NaN and Inf."""
        values = self.forward(crops)
        check_finite(values)
        if self.output == "probabilities":
            return Scores(values.astype(np.float64), None, None)
        feature_map = features = None
        if self.output == "feature_map":
            feature_map, values = values, values.mean(axis=(2, 3))
        if self.head:
            features, values = values, values @ self.head[0].T + self.head[1]
        probabilities = np.exp(log_softmax(values / self.meta.temperature))
        return Scores(probabilities, features, feature_map)


def open_classifier(
    path: Path, *, output: Output = "logits", device: str = "auto", precision: str = "fp32"
) -> Classifier:
    """Open a `.safetensors` bundle or an `.onnx` file; the latter always runs on the CPU, in fp32.

    `precision` is fp32, bf16 or auto, as in params.yaml; features and maps are always in fp32.
    Raises ParamsError for another kind of file and ArtefactError for one that is damaged.
    """
    if path.suffix == ".onnx":
        return _open_onnx(path, output)
    if path.suffix != ".safetensors":
        raise ParamsError(f"{path}: not a model file", "give a .safetensors or an .onnx file")
    bundle = load_bundle(path)
    head = None if output == "logits" else bundle.head()
    device = resolve_device(device)

    def compute(precision: str) -> Forward:
        return torch_forward(
            bundle.model, preprocess=bundle.meta.preprocess, device=device, precision=precision,
            output=output,
        )  # fmt: skip

    forward = compute("fp32")
    if output == "logits" and resolve_precision(precision, device) == "bf16":
        forward = settle(compute("bf16"), forward)
    return Classifier(bundle.meta, forward, output, head)


def settle(quick: Forward, exact: Forward) -> Forward:
    """Take the quick logits, and the exact ones of images whose two best classes are close."""

    def forward(crops: Crops) -> Floats:
        logits = quick(crops)
        second, best = np.sort(logits, axis=1)[:, -2:].T
        close = best - second < CLOSE
        if close.any():
            logits[close] = exact(crops[close])
        return logits

    return forward


def _open_onnx(path: Path, output: Output) -> Classifier:
    """Open an ONNX file with ONNX Runtime."""
    import onnxruntime

    path.stat()  # that there is no such file, the system says better
    source: str | bytes = str(path)
    head = None
    if output != "logits":
        source, head = _expose(path.read_bytes(), output, path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised as well
    # waiting threads would take the cores from those that decode
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its classes have no common base
        raise ArtefactError(f"{path}: not a whole ONNX file ({error})", REMAKE) from None
    text = session.get_modelmeta().custom_metadata_map.get(KEY)
    if text is None:
        raise ArtefactError(f"{path}: has no {KEY!r} metadata", "give the file of the export stage")
    meta = parse_meta(text, path)
    given, result = session.get_inputs()[0], session.get_outputs()[0]
    inside = given.type == "tensor(uint8)"
    crop, channels = meta.preprocess.crop, meta.preprocess.channels
    image = [crop, crop, channels] if inside else [channels, crop, crop]
    if (given.shape[1:], result.shape[1:]) != (image, [len(meta.classes)]):
        raise ArtefactError(f"{path}: its graph and its metadata do not fit", REMAKE)
    name = result.name if output == "logits" else output

    def forward(crops: Crops) -> Floats:
        batch = crops if inside else normalise_on_host(crops, meta.preprocess)
        values: Floats = session.run([name], {given.name: batch})[0]
        return values

    return Classifier(meta, forward, name, head)


def _expose(raw: bytes, name: str, path: Path) -> tuple[bytes, tuple[Floats, Floats]]:
    """Make an internal value an output of an ONNX model too, and read the head's weights."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load_model_from_string(raw)
    except DecodeError as error:
        raise ArtefactError(f"{path}: not a whole ONNX file ({error})", REMAKE) from None
    tensors = {t.name: t for t in model.graph.initializer}
    if not set(HEAD) <= tensors.keys():
        raise ArtefactError(f"{path}: has no weights {', '.join(HEAD)}", REMAKE)
    weight, bias = (onnx.numpy_helper.to_array(tensors[key]) for key in HEAD)
    model.graph.output.append(onnx.ValueInfoProto(name=name))
    return model.SerializeToString(), (weight, bias)


def normalise_on_host(crops: Crops, preprocess: FullPreprocess) -> Floats:
    """Do with numpy what `normalise` does with torch, to the bit; returns (N, C, crop, crop)."""
    batch = np.ascontiguousarray(crops.transpose(0, 3, 1, 2)).astype(np.float32)
    center, scale = (
        np.array(v, np.float32)[:, None, None] for v in (preprocess.mean, preprocess.std)
    )
    batch /= np.float32(255)
    batch -= center
    batch /= scale
    return batch
