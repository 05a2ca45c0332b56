"""Start what computes an ONNX file: ONNX Runtime or, where it is installed, OpenVINO.

Either gives the shape of a graph's last result, without the batch, and what computes that of uint8
crops. No thread waits by spinning or keeps a core for itself: the threads that decode the next
images need the cores too.
"""

import sys
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from resnets.models.bundle import BundleMeta, FullPreprocess
from resnets.models.inference import Float32s, Forward, Output
from resnets.system.errors import EnvironmentFault, ParamsError
from resnets.system.runtime import Engine, resolve_precision
from resnets.tasks.decode import Crops

if TYPE_CHECKING:
    import onnx
    import openvino

Started = tuple[list[int], Forward]
# Between the two best logits, calibrated. In 15 trained models bf16 moved that by 0.12 at most, and
# changed 16 of 6,000 answers: none that had more than 0.07 between, in bf16.
CLOSE = 0.25


def resolve_engine(path: Path, engine: Engine, precision: str) -> Engine:
    """Return what computes an ONNX file; "auto" is OpenVINO where it is installed.

    Raises ParamsError for what cannot compute it, and EnvironmentFault for what is missing.
    """
    if engine == "torch":
        fix = "leave out --engine, or give the model.safetensors that the file was made from"
        raise ParamsError(f"{path}: torch computes .safetensors files only", fix)
    install = "python -m pip install openvino"
    if engine != "onnxruntime" and find_spec("openvino"):
        return "openvino"
    if engine == "openvino":
        what = "--engine openvino: the package openvino is missing"
        raise EnvironmentFault(what, f"{install}, or give --engine onnxruntime")
    if precision == "bf16":
        fix = f"leave out --precision, or give --engine openvino ({install})"
        raise ParamsError(f"{path}: ONNX Runtime computes it in fp32 only", fix)
    return "onnxruntime"


def take_pixels(graph: "onnx.GraphProto", preprocess: FullPreprocess, num_classes: int) -> bool:
    """Let a graph that takes normalised planes and gives logits take uint8 crops.

    Returns False for any other graph. All is computed to the bit as with numpy or torch.
    """
    from onnx import TensorProto, helper, numpy_helper

    crop, channels, make = preprocess.crop, preprocess.channels, helper.make_node
    kinds = [value.type.tensor_type for value in (*graph.input, *graph.output)]
    forms = [(kind.elem_type, [d.dim_value for d in kind.shape.dim][1:]) for kind in kinds]
    wanted = [(TensorProto.FLOAT, shape) for shape in ([channels, crop, crop], [num_classes])]
    if forms != wanted or [value.name for value in graph.output] != ["logits"]:
        return False
    constants = {"white": [255.0], "mean": preprocess.mean, "std": preprocess.std}
    for name, values in constants.items():
        array = np.array(values, np.float32).reshape(-1, 1, 1)
        graph.initializer.append(numpy_helper.from_array(array, f"pixels.{name}"))
    nodes = [
        make("Transpose", ["pixels"], ["pixels.planes"], perm=[0, 3, 1, 2]),
        make("Cast", ["pixels.planes"], ["pixels.floats"], to=TensorProto.FLOAT),
        make("Div", ["pixels.floats", "pixels.white"], ["pixels.unit"]),
        make("Sub", ["pixels.unit", "pixels.mean"], ["pixels.centred"]),
        make("Div", ["pixels.centred", "pixels.std"], [graph.input[0].name]),
        *graph.node,
    ]
    del graph.node[:]
    graph.node.extend(nodes)
    pixels = helper.make_tensor_type_proto(TensorProto.UINT8, ["batch", crop, crop, channels])
    graph.input[0].CopyFrom(helper.make_value_info("pixels", pixels))
    return True


def settle(quick: Forward, exact: Forward, temperature: float) -> Forward:
    """Take the quick logits, and the exact ones of images whose two best classes are close.

    They are close as calibrated: errors grow with the logits, and so does the temperature.
    """

    def forward(crops: Crops) -> Float32s:
        logits = quick(crops)
        second, best = np.sort(logits, axis=1)[:, -2:].T
        close = best - second < CLOSE * temperature
        if close.any():
            logits[close] = exact(crops[close])
        return logits

    return forward


def start_onnxruntime(graph: bytes) -> Started:
    """Start ONNX Runtime, which computes in fp32."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised as well
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    [given], result = session.get_inputs(), session.get_outputs()[-1]

    def forward(crops: Crops) -> Float32s:
        values: Float32s = session.run([result.name], {given.name: crops})[0]
        return values

    return result.shape[1:], forward


@cache
def _openvino_core() -> "openvino.Core":
    """Return the one core of this process.

    Each gives the thread another stack for its signal handlers (openvino, pull request 11894), and
    of two that end in the order in which they began, the last one hands back what is no more: the
    next signal would be a segmentation fault.
    """
    # the converter, which nobody needs here, reports every import to Google Analytics
    sys.modules.setdefault("openvino.tools.ovc", None)  # type: ignore[arg-type]
    import openvino

    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # who writes over the file changes no answer
    return core


def start_openvino(path: Path, output: Output, precision: str, meta: BundleMeta) -> Started:
    """Read an ONNX file with OpenVINO, which compiles its graph when it is first needed.

    Images are computed each on its own: one shape serves batches of any size. One alone has all
    cores; of several each has one or a few, so that none waits for another after each layer.
    Close answers in bf16 are settled in fp32.
    """
    core = _openvino_core()
    import openvino

    model = core.read_model(path)
    steps = openvino.preprocess.PrePostProcessor(model)  # the same as `take_pixels`
    given = steps.input()
    given.tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
    given.model().set_layout(openvino.Layout("NCHW"))
    floats = given.preprocess().convert_element_type(openvino.Type.f32)
    floats.scale(255.0).mean(meta.preprocess.mean).scale(meta.preprocess.std)
    model = steps.build()
    if output != "logits":
        model.add_outputs(output)
    shape = model.inputs[0].partial_shape
    shape[0] = 1
    model.reshape(shape)
    size = list(model.outputs[-1].shape)[1:]

    @cache
    def start(hint: str, kind: str) -> "list[openvino.InferRequest]":
        options = {"PERFORMANCE_HINT": hint, "INFERENCE_PRECISION_HINT": kind}
        compiled = core.compile_model(model, "CPU", {**options, "ENABLE_CPU_PINNING": False})
        number = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        return [compiled.create_infer_request() for _ in range(2 * number)]

    def compute(crops: Crops, kind: str, hint: str = "THROUGHPUT") -> Float32s:
        values = np.empty((len(crops), *size), np.float32)
        _fill(values, crops, start("LATENCY" if len(crops) == 1 else hint, kind))
        return values

    if resolve_precision(precision, "cpu") == "fp32":
        return size, partial(compute, kind="f32")
    quick, exact = partial(compute, kind="bf16"), partial(compute, kind="f32", hint="LATENCY")
    return size, settle(quick, exact, meta.temperature)


def _fill(values: Float32s, crops: Crops, requests: "list[openvino.InferRequest]") -> None:
    """Compute the last result of each crop; no core waits while some requests do.

    OpenVINO's own queue, with its callbacks, hangs now and then when it is let go.
    """
    ahead = len(requests)
    for row in range(len(crops) + ahead):
        request = requests[row % ahead]
        if row >= ahead:
            request.wait()
            values[row - ahead] = request.output_tensors[-1].data[0]
        if row < len(crops):
            request.start_async({0: crops[row : row + 1]}, share_inputs=True)
