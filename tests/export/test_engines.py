"""Test the engines: all give torch's answers, and say what they cannot do and what is missing."""

import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from resnets.export.classifier import open_classifier
from resnets.export.engines import settle
from resnets.export.int8 import quantize_int8
from resnets.export.onnx import to_onnx
from resnets.models.bundle import load_bundle
from resnets.models.inference import Output, infer
from resnets.system.errors import EnvironmentFault, ParamsError
from resnets.system.runtime import Engine
from resnets.tasks.decode import crop_batch
from tests.bundles import PREPROCESS, Trained, make_trained, need
from tests.export.test_export import normalised


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Make a bundle, and beside it the same model as plain.onnx and int8.onnx."""
    trained = make_trained(tmp_path_factory.mktemp("trained"), num=40)
    folder = trained.bundle.parent
    model = to_onnx(load_bundle(trained.bundle))
    (folder / "plain.onnx").write_bytes(model.SerializeToString())
    quantize_int8(folder / "plain.onnx", folder / "int8.onnx", trained.task.side("val").images)
    return trained


@pytest.fixture(params=["onnxruntime", "openvino"])
def engine(request: pytest.FixtureRequest) -> Engine:
    engine: Engine = request.param
    need(engine)
    return engine


@pytest.fixture(scope="module")
def crops(trained: Trained) -> NDArray[np.uint8]:
    images = trained.task.side("test").images
    return crop_batch(images, range(len(images)), PREPROCESS.crop)


@pytest.mark.parametrize("output", get_args(Output))
def test_an_engine_computes_in_fp32_what_torch_computes(
    trained: Trained, crops: NDArray[np.uint8], engine: Engine, output: Output
) -> None:
    wanted = open_classifier(trained.bundle, output=output, device="cpu", precision="fp32")
    path = trained.bundle.parent / "plain.onnx"
    opened = open_classifier(path, output=output, engine=engine, precision="fp32")
    assert opened.meta.classes == wanted.meta.classes
    for size in (len(crops), 1, 2):
        scores, others = opened.score(crops[:size]), wanted.score(crops[:size])
        np.testing.assert_allclose(scores.probabilities, others.probabilities, atol=1e-5)
        for key in ("features", "feature_map"):
            values, exact = getattr(scores, key), getattr(others, key)
            assert (values is None) == (exact is None)
            if exact is not None:
                np.testing.assert_allclose(values, exact, atol=1e-4)
    if opened.output == "logits":
        logits = infer(load_bundle(trained.bundle).model, list(crops), preprocess=PREPROCESS)
        np.testing.assert_allclose(opened.forward(crops), logits, rtol=1e-4, atol=2e-5)


def test_pixels_are_normalised_in_the_graph_to_the_bit(
    trained: Trained, crops: NDArray[np.uint8]
) -> None:
    path = trained.bundle.parent / "plain.onnx"
    session = onnxruntime.InferenceSession(path)
    [wanted] = session.run(None, {"images": normalised(crops, PREPROCESS)})
    assert np.array_equal(open_classifier(path, engine="onnxruntime").forward(crops), wanted)


@pytest.mark.parametrize("precision", ["auto", "bf16"])
@pytest.mark.parametrize("name", ["plain.onnx", "model.safetensors"])
def test_answers_by_default_and_in_bf16_are_those_of_fp32(
    trained: Trained, crops: NDArray[np.uint8], name: str, precision: str
) -> None:
    if name != "model.safetensors":
        need("openvino")
    wanted = open_classifier(trained.bundle, device="cpu", precision="fp32").score(crops)
    path = trained.bundle.parent / name
    scores = open_classifier(path, device="cpu", precision=precision).score(crops)
    exact, quick = wanted.probabilities, scores.probabilities
    assert np.array_equal(quick.argmax(1), exact.argmax(1))
    assert np.abs(quick - exact).max() < 0.05
    if precision == "bf16":
        assert not np.array_equal(quick, exact)


def test_rows_keep_their_places_though_images_are_computed_side_by_side(
    trained: Trained, crops: NDArray[np.uint8]
) -> None:
    need("openvino")
    opened = open_classifier(trained.bundle.parent / "plain.onnx", engine="openvino")
    logits = opened.forward(np.concatenate([crops] * 5))
    alone = np.concatenate([opened.forward(crop[None]) for crop in crops])
    assert np.array_equal(logits, np.concatenate([alone] * 5))


def test_who_writes_over_the_file_of_an_open_model_changes_no_answer(
    trained: Trained, crops: NDArray[np.uint8], engine: Engine, tmp_path: Path
) -> None:
    plain, path = trained.bundle.parent / "plain.onnx", tmp_path / "m.onnx"
    path.write_bytes(plain.read_bytes())
    opened = open_classifier(path, engine=engine)
    path.write_bytes(b"")
    assert np.array_equal(
        opened.forward(crops), open_classifier(plain, engine=engine).forward(crops)
    )


def test_an_int8_file_runs_in_every_engine(
    trained: Trained, crops: NDArray[np.uint8], engine: Engine
) -> None:
    folder = trained.bundle.parent
    exact = open_classifier(folder / "plain.onnx", engine=engine, precision="fp32")
    small = open_classifier(folder / "int8.onnx", engine=engine).score(crops).probabilities
    difference = np.abs(small - exact.score(crops).probabilities)
    assert 0 < difference.max() < 0.2
    wanted = onnxruntime.InferenceSession(folder / "int8.onnx")
    [logits] = wanted.run(None, {"images": normalised(crops, PREPROCESS)})
    found = open_classifier(folder / "int8.onnx", engine=engine).forward(crops)
    assert np.abs(found - logits).max() < 0.1 * np.abs(logits).max()


def test_without_openvino_auto_is_onnx_runtime_and_a_wish_for_it_says_what_to_install(
    trained: Trained, crops: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = trained.bundle.parent / "plain.onnx"
    wanted = open_classifier(path, engine="onnxruntime").forward(crops)
    monkeypatch.setitem(sys.modules, "openvino", None)  # as if it were not installed
    assert np.array_equal(open_classifier(path).forward(crops), wanted)
    with pytest.raises(EnvironmentFault, match="the package openvino is missing") as missing:
        open_classifier(path, engine="openvino")
    assert missing.value.fix == "python -m pip install openvino, or give --engine onnxruntime"
    with pytest.raises(ParamsError, match=r"plain\.onnx: ONNX Runtime computes it in fp32 only"):
        open_classifier(path, precision="bf16")


def test_openvino_reports_nothing_and_writes_no_identifier(
    trained: Trained, tmp_path: Path
) -> None:
    """Its own import does both: it writes into ~/intel and tells Google Analytics."""
    need("openvino")
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from resnets.export.classifier import open_classifier\n"
        "open_classifier(Path(sys.argv[1]), engine='openvino')\n"
        "assert 'openvino' in sys.modules\n"
        "assert not [name for name in sys.modules if 'telemetry' in name]"
    )
    path = trained.bundle.parent / "plain.onnx"
    environment = {key: value for key, value in os.environ.items() if key != "CI"} | {
        "HOME": str(tmp_path)
    }
    subprocess.run([sys.executable, "-c", program, path], env=environment, check=True)
    assert not list(tmp_path.iterdir())


def test_a_signal_comes_through_after_models_were_opened_and_let_go(trained: Trained) -> None:
    """The ends of two cores of OpenVINO left a stack for signal handlers that was no more."""
    need("openvino")
    program = (
        "import signal, sys\nfrom pathlib import Path\n"
        "from resnets.export.classifier import open_classifier\n"
        "from resnets.tasks.decode import crop_batch\nfrom resnets.tasks.task import Task\n"
        "images = Task(Path(sys.argv[2])).side('test').images\n"
        "opened = [open_classifier(Path(sys.argv[1]), engine='openvino') for _ in range(2)]\n"
        "for one in opened: one.score(crop_batch(images, range(2), one.meta.preprocess.crop))\n"
        "del one, opened[0]\nopened.clear()\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('told'))\n"
        "signal.raise_signal(signal.SIGTERM)\n"
    )
    folder = trained.bundle.parent
    command = [sys.executable, "-c", program, folder / "plain.onnx", trained.task.folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "told\n"), done.stderr


def test_an_engine_for_another_kind_of_file_is_refused(trained: Trained, engine: Engine) -> None:
    with pytest.raises(ParamsError, match=r"plain\.onnx: torch computes \.safetensors files only"):
        open_classifier(trained.bundle.parent / "plain.onnx", engine="torch")
    with pytest.raises(ParamsError, match=rf"{engine} computes \.onnx files only"):
        open_classifier(trained.bundle, engine=engine)


@given(
    arrays(np.float32, (5, 3), elements=st.floats(-4, 4, width=32)),
    arrays(np.float32, (5, 3), elements=st.floats(-0.1171875, 0.1171875, width=32)),
    st.sampled_from([0.5, 1.0, 4.0]),
)
def test_an_error_below_half_of_close_changes_no_answer(
    logits: NDArray[np.float32], errors: NDArray[np.float32], temperature: float
) -> None:
    crops = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1)

    def exact(some: NDArray[np.uint8]) -> NDArray[np.float32]:
        return logits[some.ravel()]

    def quick(some: NDArray[np.uint8]) -> NDArray[np.float32]:
        return exact(some) + errors[some.ravel()] * np.float32(temperature)

    settled = settle(quick, exact, temperature)(crops)
    assert np.array_equal(settled.argmax(1), logits.argmax(1))
