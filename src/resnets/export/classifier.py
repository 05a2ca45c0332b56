"""Open a trained model, bundle or ONNX file, as one thing: uint8 crops in, probabilities out.

An ONNX file is opened without torch. Both kinds give the same answers: classes, preprocessing and
temperature come from the file, and everything but the network itself is shared.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from resnets.models.bundle import KEY, BundleMeta, FullPreprocess, load_bundle, parse_meta
from resnets.models.calibration import log_softmax
from resnets.models.inference import Float32s, Forward, Output, check_finite, torch_forward
from resnets.system.errors import ArtefactError, ParamsError
from resnets.system.runtime import resolve_device, resolve_precision
from resnets.tasks.decode import Crops

if TYPE_CHECKING:
    import onnx
    import onnxruntime

INPUT = "images"  # of an ONNX file; its internal values are called as in `Output`
HEAD = ("model.fc.weight", "model.fc.bias")  # the head's weights in an ONNX file
# All that an export writes, in int8 too: nothing that repeats, branches or reads another file.
OPERATORS = {"Add", "Cast", "Conv", "Div", "Gemm", "MaxPool", "Pad", "ReduceMean", "Relu", "Slice"}
OPERATORS |= {"Softmax", "Sub", "Transpose", "QuantizeLinear", "DequantizeLinear"}
# Between the two best logits. bf16 moves those of our trained models by 0.01 to 0.04 (standard
# deviation); of 2,000 answers it changed 3, and none where closer ones were computed again in fp32.
CLOSE = 0.25
REMAKE = "make it again with `dvc repro export`, or restore it with `dvc checkout`"


@dataclass(frozen=True)
class Scores:
    """Hold what a model says about N images."""

    probabilities: NDArray[np.float64]  # (N, K), calibrated
    features: Float32s | None  # (N, F)
    feature_map: Float32s | None  # (N, F, h, w)


@dataclass(frozen=True)
class Classifier:
    """Hold an opened model: `forward` gives `output`, and `head` turns features into logits."""

    meta: BundleMeta
    forward: Forward
    output: str  # one of `Output`, or probabilities
    head: tuple[Float32s, Float32s]  # weight (K, F) and bias (K,)

    def score(self, crops: Crops) -> Scores:
        """Classify uint8 crops (N, crop, crop, C); raise NumericalError for NaN and Inf."""
        values = self.forward(crops)
        check_finite(values)
        if self.output == "probabilities":
            return Scores(values.astype(np.float64), None, None)
        feature_map = features = None
        if self.output == "feature_map":
            feature_map, values = values, values.mean(axis=(2, 3))
        if self.output != "logits":
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
    bundle, device = load_bundle(path), resolve_device(device)
    compute = partial(torch_forward, preprocess=bundle.meta.preprocess, device=device)
    forward = compute(bundle.model, output=output)
    if output == "logits" and resolve_precision(precision, device) == "bf16":
        forward = settle(compute(bundle.model, precision="bf16"), forward)
    return Classifier(bundle.meta, forward, output, bundle.head())


def settle(quick: Forward, exact: Forward) -> Forward:
    """Take the quick logits, and the exact ones of images whose two best classes are close."""

    def forward(crops: Crops) -> Float32s:
        logits = quick(crops)
        second, best = np.sort(logits, axis=1)[:, -2:].T
        close = best - second < CLOSE
        if close.any():
            logits[close] = exact(crops[close])
        return logits

    return forward


def _open_onnx(path: Path, output: Output) -> Classifier:
    """Open an ONNX file with ONNX Runtime."""
    from onnx import numpy_helper

    model, meta = read_onnx(path)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    with _refusing(f"{path}: has no weights {' and '.join(HEAD)}"):
        weight, bias = (numpy_helper.to_array(tensors[key]) for key in HEAD)
    if output != "logits":
        model.graph.output.add(name=output)  # a value inside becomes a result too
    session = _start(model, path)
    values = (*session.get_inputs(), *session.get_outputs())
    shapes = [(value.type, value.shape[1:]) for value in values]
    form, num_classes = meta.preprocess, len(meta.classes)
    pixels = ("tensor(uint8)", [form.crop, form.crop, form.channels])
    planes = ("tensor(float)", [form.channels, form.crop, form.crop])
    scores = ("tensor(float)", [num_classes])
    fits = shapes[:2] in ([pixels, scores], [planes, scores])
    if output != "logits":
        fits = fits and list(weight.shape) == [num_classes, *shapes[-1][1][:1]]
    if not fits:
        raise ArtefactError(f"{path}: its graph and its metadata do not fit", REMAKE)
    given, name = values[0].name, values[-1].name
    too_large = f"lower the batch size if it needs too much memory; otherwise, {REMAKE}"

    def forward(crops: Crops) -> Float32s:
        batch = crops if shapes[0] == pixels else normalise_on_host(crops, form)
        with _refusing(f"{path}: its graph cannot be computed", too_large):
            computed: Float32s = session.run([name], {given: batch})[0]
        return computed

    return Classifier(meta, forward, name, (weight, bias))


@contextmanager
def _refusing(what: str, fix: str = REMAKE) -> Iterator[None]:
    """Blame the file for what its readers raise: their errors have no common base."""
    try:
        yield
    except Exception as error:
        raise ArtefactError(f"{what} ({error})", fix) from None


def _start(model: "onnx.ModelProto", path: Path) -> "onnxruntime.InferenceSession":
    """Let ONNX Runtime load a model."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised as well
    # waiting threads would take the cores from those that decode
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    raw, providers = model.SerializeToString(), ["CPUExecutionProvider"]
    with _refusing(f"{path}: not a whole ONNX file"):
        return onnxruntime.InferenceSession(raw, options, providers=providers)


def read_onnx(path: Path) -> tuple["onnx.ModelProto", BundleMeta]:
    """Read an ONNX file of the export stage and its description; nothing of it is run.

    Raises ArtefactError for a file with anything in it that an export does not write.
    """
    import onnx

    raw = path.read_bytes()
    with _refusing(f"{path}: not a whole ONNX file"):
        model = onnx.load_model_from_string(raw)
    graph = model.graph
    operators = {".".join(filter(None, (node.domain, node.op_type))) for node in graph.node}
    foreign = [f"the operator {name}" for name in sorted(operators - OPERATORS)][:5]
    foreign += ["functions"] if model.functions else []
    foreign += ["sparse weights"] if graph.sparse_initializer else []
    if any(weight.data_location or weight.external_data for weight in graph.initializer):
        foreign.append("weights in other files")
    text = next((entry.value for entry in model.metadata_props if entry.key == KEY), None)
    if foreign or text is None:
        what = f"has {', '.join(foreign)}" if foreign else f"has no {KEY!r} metadata"
        raise ArtefactError(f"{path}: {what}", "give the file of the export stage")
    return model, parse_meta(text, path)


def normalise_on_host(crops: Crops, preprocess: FullPreprocess) -> Float32s:
    """Do with numpy what `normalise` does with torch, to the bit; returns (N, C, crop, crop)."""
    batch = np.ascontiguousarray(crops.transpose(0, 3, 1, 2)).astype(np.float32)
    center, scale = np.array([preprocess.mean, preprocess.std], np.float32)[..., None, None]
    batch /= np.float32(255)
    batch -= center
    batch /= scale
    return batch
