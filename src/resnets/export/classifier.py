"""Open a trained model, bundle or ONNX file, as one thing: uint8 crops in, probabilities out.

An ONNX file is opened without torch. Both kinds give the same answers: classes, preprocessing and
temperature come from the file, and everything but the network itself is shared.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from resnets.models.bundle import KEY, BundleMeta, FullPreprocess, load_bundle, parse_meta
from resnets.models.calibration import log_softmax
from resnets.models.inference import Floats, Forward, Output, check_finite, torch_forward
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
    model, meta = read_onnx(path)
    head = None if output == "logits" else _expose(model, output, path)
    session = _start(model, path)
    values = (*session.get_inputs(), *session.get_outputs())
    shapes = [(value.type, value.shape[1:]) for value in values]
    crop, channels, num_classes = meta.preprocess.crop, meta.preprocess.channels, len(meta.classes)
    inside = shapes[:1] == [("tensor(uint8)", [crop, crop, channels])]
    fits = inside or shapes[:1] == [("tensor(float)", [channels, crop, crop])]
    fits = fits and shapes[1:2] == [("tensor(float)", [num_classes])]
    if not fits or (head and list(head[0].shape) != [num_classes, *shapes[-1][1][:1]]):
        raise ArtefactError(f"{path}: its graph and its metadata do not fit", REMAKE)
    given, name = values[0].name, values[1].name if output == "logits" else output

    def forward(crops: Crops) -> Floats:
        batch = crops if inside else normalise_on_host(crops, meta.preprocess)
        try:
            computed: Floats = session.run([name], {given: batch})[0]
        except Exception as error:
            fix = f"lower the batch size if it needs too much memory; otherwise, {REMAKE}"
            raise ArtefactError(f"{path}: its graph cannot be computed ({error})", fix) from None
        return computed

    return Classifier(meta, forward, name, head)


def _start(model: "onnx.ModelProto", path: Path) -> "onnxruntime.InferenceSession":
    """Let ONNX Runtime load a model."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised as well
    # waiting threads would take the cores from those that decode
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    raw, providers = model.SerializeToString(), ["CPUExecutionProvider"]
    try:
        return onnxruntime.InferenceSession(raw, options, providers=providers)
    except Exception as error:  # its classes have no common base
        raise ArtefactError(f"{path}: not a whole ONNX file ({error})", REMAKE) from None


def read_onnx(path: Path) -> tuple["onnx.ModelProto", BundleMeta]:
    """Read an ONNX file of the export stage and its description; nothing of it is run.

    Raises ArtefactError for a file with anything in it that an export does not write.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except DecodeError as error:
        raise ArtefactError(f"{path}: not a whole ONNX file ({error})", REMAKE) from None
    nodes, weights = model.graph.node, model.graph.initializer
    operators = {".".join(filter(None, (node.domain, node.op_type))) for node in nodes}
    foreign = {f"the operator {name}" for name in operators - OPERATORS}
    foreign |= {"functions" for _ in model.functions}
    foreign |= {"sparse weights" for _ in model.graph.sparse_initializer}
    foreign |= {"weights in other files" for w in weights if w.data_location or w.external_data}
    text = next((entry.value for entry in model.metadata_props if entry.key == KEY), None)
    if foreign or text is None:
        what = f"has {', '.join(sorted(foreign)[:5])}" if foreign else f"has no {KEY!r} metadata"
        raise ArtefactError(f"{path}: {what}", "give the file of the export stage")
    return model, parse_meta(text, path)


def _expose(model: "onnx.ModelProto", name: str, path: Path) -> tuple[Floats, Floats]:
    """Make an internal value an output of an ONNX model too, and return the head's weights."""
    import onnx

    tensors = {t.name: t for t in model.graph.initializer}
    try:
        weight, bias = (onnx.numpy_helper.to_array(tensors[key]) for key in HEAD)
    except (KeyError, TypeError, ValueError):
        raise ArtefactError(f"{path}: has no weights {', '.join(HEAD)}", REMAKE) from None
    model.graph.output.append(onnx.ValueInfoProto(name=name))
    return weight, bias


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
