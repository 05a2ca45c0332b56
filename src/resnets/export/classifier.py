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

from resnets.export import engines
from resnets.models.bundle import KEY, BundleMeta, load_bundle, parse_meta
from resnets.models.calibration import log_softmax
from resnets.models.inference import Float32s, Forward, Output, check_finite, torch_forward
from resnets.system.errors import ArtefactError, EnvironmentFault, ParamsError
from resnets.system.runtime import Engine, resolve_device, resolve_precision
from resnets.tasks.decode import Crops

if TYPE_CHECKING:
    import onnx

INPUT = "images"  # of an ONNX file; its other values are called as in `Output`
HEAD = ("model.fc.weight", "model.fc.bias")  # the head's weights in an ONNX file
# All that an export writes, in int8 too: nothing that repeats, branches or reads another file.
OPERATORS = {"Add", "Conv", "Gemm", "MaxPool", "Pad", "ReduceMean", "Relu", "Slice"}
OPERATORS |= {"QuantizeLinear", "DequantizeLinear"}
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
    output: Output
    head: tuple[Float32s, Float32s]  # weight (K, F) and bias (K,)

    def score(self, crops: Crops) -> Scores:
        """Classify uint8 crops (N, crop, crop, C); raise NumericalError for NaN and Inf."""
        values = self.forward(crops)
        check_finite(values)
        feature_map = features = None
        if self.output == "feature_map":
            feature_map, values = values, values.mean(axis=(2, 3))
        if self.output != "logits":
            features, values = values, values @ self.head[0].T + self.head[1]
        probabilities = np.exp(log_softmax(values / self.meta.temperature))
        return Scores(probabilities, features, feature_map)


def open_classifier(
    path: Path,
    *,
    output: Output = "logits",
    device: str = "auto",
    engine: Engine = "auto",
    precision: str = "auto",
) -> Classifier:
    """Open a `.safetensors` bundle, with torch, or an `.onnx` file, which runs on the CPU.

    `precision` is fp32, bf16 or auto, as in params.yaml; features and maps are always in fp32.
    Raises ParamsError for another kind of file or engine, EnvironmentFault for an engine that is
    missing, and ArtefactError for a file that is damaged.
    """
    precision = precision if output == "logits" else "fp32"
    if path.suffix == ".onnx":
        return _open_onnx(path, output, engine, precision)
    if path.suffix != ".safetensors":
        raise ParamsError(f"{path}: not a model file", "give a .safetensors or an .onnx file")
    if engine not in ("auto", "torch"):
        fix = "leave out --engine, or give the .onnx file of the export stage"
        raise ParamsError(f"{path}: {engine} computes .onnx files only", fix)
    bundle, device = load_bundle(path), resolve_device(device)
    meta, compute = bundle.meta, partial(torch_forward, bundle.model, device=device)
    forward = compute(preprocess=meta.preprocess, output=output)
    if resolve_precision(precision, device) == "bf16":
        quick = compute(preprocess=meta.preprocess, precision="bf16")
        forward = engines.settle(quick, forward, meta.temperature)
    return Classifier(meta, forward, output, bundle.head())


def _open_onnx(path: Path, output: Output, engine: Engine, precision: str) -> Classifier:
    """Open an ONNX file, and let it give an inner value where one is asked for."""
    from onnx import numpy_helper

    engine = engines.resolve_engine(path, engine, precision)
    model, meta = read_onnx(path)
    graph, num_classes = model.graph, len(meta.classes)
    if any(node.op_type == "QuantizeLinear" for node in graph.node):
        precision = "fp32"  # of the little that is not in int8
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    with _refusing(f"{path}: has no weights {' and '.join(HEAD)}"):
        weight, bias = (numpy_helper.to_array(tensors[key]) for key in HEAD)
    misfit = ArtefactError(f"{path}: its graph and its metadata do not fit", REMAKE)
    if not engines.take_pixels(graph, meta.preprocess, num_classes):
        raise misfit
    if output != "logits":
        graph.output.add(name=output)  # a value inside becomes a result too
    with _refusing(f"{path}: not a whole ONNX file"):
        if engine == "openvino":
            # it reads the file and changes that itself: bytes would be copied five times more
            shape, run = engines.start_openvino(path, output, precision, meta)
        else:
            shape, run = engines.start_onnxruntime(model.SerializeToString())
    size = weight.shape[1:] if output != "logits" else (num_classes,)
    if (num_classes, *shape[:1]) != (weight.shape[0], *size):
        raise misfit
    too_large = f"lower the batch size if it needs too much memory; otherwise, {REMAKE}"

    def forward(crops: Crops) -> Float32s:
        with _refusing(f"{path}: its graph cannot be computed", too_large):
            return run(crops)

    return Classifier(meta, forward, output, (weight, bias))


@contextmanager
def _refusing(what: str, fix: str = REMAKE) -> Iterator[None]:
    """Blame the file for what its readers raise: their errors have no common base."""
    try:
        yield
    except MemoryError:
        raise
    except ImportError as error:
        how = "install it again, or take another one with --engine"
        raise EnvironmentFault(f"an engine cannot be loaded ({error})", how) from None
    except Exception as error:
        raise ArtefactError(f"{what} ({error})", fix) from None


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
    if any(value.HasField("g") or value.graphs for node in graph.node for value in node.attribute):
        foreign.append("graphs within its graph")
    foreign += ["sparse weights"] if graph.sparse_initializer else []
    if any(weight.data_location or weight.external_data for weight in graph.initializer):
        foreign.append("weights in other files")
    text = next((entry.value for entry in model.metadata_props if entry.key == KEY), None)
    if foreign or text is None:
        what = f"has {', '.join(foreign)}" if foreign else f"has no {KEY!r} metadata"
        raise ArtefactError(f"{path}: {what}", "give the file of the export stage")
    return model, parse_meta(text, path)
