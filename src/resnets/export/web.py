"""Write a page that classifies photos in the browser: no server, no network, nothing is sent.

The model and the runtime lie beside the page as text in scripts, because a page that was opened
from a disk may load scripts and nothing else.
"""

import json
from base64 import b64encode
from pathlib import Path

import onnx
from onnx import helper

from resnets.export.classifier import HEAD
from resnets.models.bundle import BundleMeta
from resnets.system.files import write_bytes

SOURCE = Path(__file__).with_name("demo")
RUNTIME = SOURCE / "onnxruntime-web"  # version 1.30.0 of npm; the test knows its checksums
DESCRIPTION = {"architecture", "classes", "hashes", "preprocess", "temperature"}


def write_page(out: Path, model: onnx.ModelProto, meta: BundleMeta) -> None:
    """Write index.html and what it loads, the same bytes for the same model."""
    for source in (*sorted(SOURCE.glob("*.*")), RUNTIME / "LICENSE"):
        write_bytes(out / source.name, source.read_bytes())
    shown = with_class_maps(model).SerializeToString(deterministic=True)
    description = meta.model_dump(include=DESCRIPTION)
    _write_script(out / "model.js", "MODEL", **description, onnx=b64encode(shown).decode())
    module, binary = RUNTIME / "ort.wasm.bundle.min.mjs", RUNTIME / "ort-wasm-simd-threaded.wasm.gz"
    packed = b64encode(binary.read_bytes()).decode()
    _write_script(out / "runtime.js", "RUNTIME", module=module.read_text("utf-8"), wasm=packed)


def _write_script(path: Path, name: str, **values: object) -> None:
    """Write values as a constant of a script; JSON in ASCII is JavaScript too."""
    text = f"const {name} = {json.dumps(values, sort_keys=True)};\n"
    write_bytes(path, text.encode("ascii"))


def with_class_maps(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy that gives `logits` (N, K) and `class_maps` (N, K, h, w).

    A class map is the head without its bias at every place of the feature map: what Grad-CAM is in
    a network that ends in average pooling and one linear layer.
    """
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    graph = shown.graph
    graph.initializer.append(helper.make_tensor("axes", onnx.TensorProto.INT64, [2], [2, 3]))
    graph.node.append(helper.make_node("Unsqueeze", [HEAD[0], "axes"], ["kernel"]))
    graph.node.append(helper.make_node("Conv", ["feature_map", "kernel"], ["class_maps"]))
    graph.output.add(name="class_maps")
    return shown
