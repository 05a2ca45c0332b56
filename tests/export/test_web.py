"""Test the page for photos in a browser: it answers as `resnets predict` does, and no other."""

import csv
import functools
import gzip
import hashlib
import io
import json
import shutil
import threading
from base64 import b64decode, b64encode
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from resnets.export.classifier import open_classifier
from resnets.export.web import RUNTIME
from resnets.predict.answers import Reports
from resnets.predict.run import predict
from resnets.tasks.decode import center_crop, crop_batch, decode, resize, to_pixels
from tests.bundles import CLASSES, PREPROCESS, Trained, make_trained
from tests.data.photos import encode, make_photo
from tests.export.test_export import export, normalised

NAMES = ("chromium", "chromium-browser", "google-chrome")
WASM = "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2"
MODULE = "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90"
PICK = "input[type=file] >> nth=0"
Page = Any  # of playwright, which the quick tests do without


def test_the_runtime_is_the_published_one() -> None:
    """The checksums are of the files of onnxruntime-web 1.30.0 on npm."""
    packed = (RUNTIME / "ort-wasm-simd-threaded.wasm.gz").read_bytes()
    assert hashlib.sha256(gzip.decompress(packed)).hexdigest() == WASM
    module = (RUNTIME / "ort.wasm.bundle.min.mjs").read_bytes()
    assert hashlib.sha256(module).hexdigest() == MODULE
    assert "MIT License" in (RUNTIME / "LICENSE").read_text()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return make_trained(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def exported(trained: Trained) -> Path:
    export(trained, trained.bundle.parent / "plain")
    return trained.bundle.parent / "plain"


@pytest.fixture(scope="module")
def address(exported: Path) -> Iterator[str]:
    """Serve the export as a static host does."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=exported)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def open_page(browser: Any, address: str) -> Iterator[Any]:
    """Return what opens a page; no request may leave its origin, and no script may fail."""
    faults: list[str] = []
    contexts = []

    def open_one(url: str = f"{address}/demo/", **settings: Any) -> Page:
        context = browser.new_context(**settings)
        contexts.append(context)
        page = context.new_page()
        own = (url.rpartition("/")[0], "data:", f"blob:{address}/", "blob:null/")
        page.on("request", lambda r: r.url.startswith(own) or faults.append(r.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(url)
        wait_for(page, "Ready.")
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert not faults


def wait_for(page: Page, status: str) -> None:
    page.get_by_role("status").filter(has_text=status).wait_for(timeout=60_000)


def write_files(folder: Path, num: int) -> list[Path]:
    """Write photos of many sizes, shapes and kinds."""
    rng = np.random.default_rng(1)
    folder.mkdir()
    for index in range(num):
        width, height = (int(x) for x in rng.integers(20, 400, 2))
        image = make_photo(index, (width, min(height, 8 * width)))
        image = image.convert(("RGB", "L", "P", "RGBA")[index % 4])
        kind = ("png", "webp")[index % 2]
        image.save(folder / f"{index:03d}.{kind}", lossless=True)
    return sorted(folder.iterdir())


def saved_table(page: Page) -> list[dict[str, str]]:
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as CSV").click()
    text = Path(download.value.path()).read_text(encoding="utf-8")
    return list(csv.DictReader(io.StringIO(text, newline="")))


@pytest.mark.slow
def test_200_photos_get_the_answers_of_predict(
    exported: Path, open_page: Any, tmp_path: Path
) -> None:
    files, table = write_files(tmp_path / "photos", 200), tmp_path / "answers.csv"
    predict(
        [str(file) for file in files],
        (),
        model=exported / "model.onnx",
        reports=Reports(table, threshold=0.8),
        batch_size=32,
        device="cpu",
        precision="fp32",
    )
    page = open_page()
    page.set_input_files(PICK, files)
    wait_for(page, "200 photos classified")
    with table.open(encoding="utf-8") as text:
        wanted = list(csv.DictReader(text))
    found = saved_table(page)
    assert [row["path"] for row in found] == [Path(row["path"]).name for row in wanted]
    assert found[0].keys() == wanted[0].keys()
    values = [np.array([[float(r[c]) for c in CLASSES] for r in rows]) for rows in (found, wanted)]
    assert len({*values[1].argmax(1)}) == len(CLASSES)
    np.testing.assert_allclose(*values, atol=1e-3)
    np.testing.assert_array_equal(*(scores.argmax(1) for scores in values))
    assert [row["predicted"] for row in found] == [row["predicted"] for row in wanted]
    assert {"unsure"} < {row["predicted"] for row in found}


LARGE = make_photo(3, (1511, 1007))
TURNED = Image.Exif()
TURNED[0x0112] = 6  # the camera was held upright
CLEAR = LARGE.copy()
CLEAR.putalpha(Image.linear_gradient("L").resize(LARGE.size))
FILES = {
    "large": encode(LARGE),
    "odd": encode(make_photo(4, (47, 61))),
    "enlarged": encode(make_photo(4, (13, 9))),
    "grey": encode(LARGE.convert("L")),
    "palette": encode(LARGE.quantize(64)),
    "transparent": encode(CLEAR),
    "animated": encode(LARGE, "GIF", save_all=True, append_images=[make_photo(9, LARGE.size)]),
    "jpeg": encode(LARGE, "JPEG", quality=90),
    "grey jpeg": encode(LARGE.convert("L"), "JPEG", quality=90),
    "turned": encode(LARGE, "JPEG", quality=90, exif=TURNED),
    "webp": encode(LARGE, "WEBP", lossless=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fit", ["shorter_side", "stretch"])
def test_pixels_are_those_of_pillow(open_page: Any, channels: Any, fit: Any) -> None:
    page = open_page()
    form = {"channels": channels, "fit": fit, "resize": 33, "crop": 28}
    program = """async ([text, form]) => {
        Object.assign(FORM, form);
        return [...await cropPhoto(new Blob([fromBase64(text)]))];
    }"""
    for name, content in FILES.items():
        found = page.evaluate(program, [b64encode(content).decode(), form])
        pixels = to_pixels(decode(content, channels=channels, max_megapixels=10).picture)
        crop = center_crop(resize(pixels, 33, fit), 28)
        away = np.abs(np.array(found).reshape(crop.shape) - crop.astype(int))
        assert away.max() <= 1, (name, away.max())


@pytest.mark.slow
def test_a_file_that_is_no_photo_gets_a_plain_message(open_page: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("no picture")
    (tmp_path / "half.jpg").write_bytes(FILES["jpeg"][:5000])
    (tmp_path / "good.png").write_bytes(FILES["odd"])
    page = open_page()
    page.set_input_files(PICK, [tmp_path / "notes.jpg"])
    detail = page.get_by_role("region", name="notes.jpg")
    detail.get_by_text("Not classified: not an image that this browser can open").wait_for()
    page.set_input_files(PICK, [tmp_path / "half.jpg", tmp_path / "good.png"])
    wait_for(page, "1 photos classified; 1 could not be opened")
    rows = saved_table(page)
    assert [bool(row["error"]) for row in rows] == [True, True, False]
    assert page.get_by_role("region", name="good.png").is_visible()


@pytest.mark.slow
def test_names_are_text_and_no_formula(open_page: Any, tmp_path: Path) -> None:
    names = ["<img src=x onerror=alert(1)>.png", "=1+1.png", 'a "b", c.png']
    for name, photo in zip(names, (CLEAR, LARGE, LARGE), strict=True):
        (tmp_path / name).write_bytes(encode(photo))
    page = open_page()
    page.set_input_files(PICK, [tmp_path / name for name in names])
    wait_for(page, "3 photos classified")
    for name in names:
        assert page.get_by_role("cell", name=name, exact=True).is_visible()
    assert page.locator("img, b").count() == 0
    assert page.get_by_text(CLASSES[2]).count() >= 2  # in the list of classes, and in the answer
    assert [row["path"] for row in saved_table(page)] == [names[0], "'=1+1.png", names[2]]


@pytest.mark.slow
def test_everything_can_be_done_with_the_keyboard(open_page: Any, tmp_path: Path) -> None:
    for index in range(2):
        (tmp_path / f"{index}.png").write_bytes(encode(make_photo(index)))
    page = open_page()

    def tab_to(role: str, name: str) -> None:
        wanted = page.get_by_role(role, name=name)
        for _ in range(30):
            page.keyboard.press("Tab")
            if wanted.evaluate("element => element === document.activeElement"):
                return
        raise AssertionError(f"no way to {name}")

    with page.expect_file_chooser() as chooser:
        tab_to("button", "Choose photos")
        page.keyboard.press("Enter")
    chooser.value.set_files([tmp_path / "0.png", tmp_path / "1.png"])
    wait_for(page, "2 photos classified")
    tab_to("checkbox", "Heat map")
    with_heat = page.locator("#picture").evaluate("canvas => canvas.toDataURL()")
    page.keyboard.press("Space")
    assert page.locator("#picture").evaluate("canvas => canvas.toDataURL()") != with_heat
    page.keyboard.press("Space")
    assert page.locator("#picture").evaluate("canvas => canvas.toDataURL()") == with_heat
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the second class
    assert page.locator("#best button:focus").get_attribute("aria-pressed") == "true"
    assert page.locator("#picture").evaluate("canvas => canvas.toDataURL()") != with_heat
    tab_to("button", "1.png")
    page.keyboard.press("Enter")
    assert page.get_by_role("region", name="1.png").is_visible()
    with page.expect_download() as download:
        tab_to("button", "Save as CSV")
        page.keyboard.press("Enter")
    assert download.value.suggested_filename == "answers.csv"
    tab_to("slider", "Unsure below")
    page.keyboard.press("End")
    page.get_by_text("which is below 99%").wait_for()
    assert page.get_by_role("cell", name="unsure").count() == 2


@pytest.mark.slow
def test_photos_can_be_dropped_and_pasted(open_page: Any) -> None:
    page = open_page()
    program = """([text, kind, key]) => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([fromBase64(text)], `${kind}.png`));
        const Event = kind === "drop" ? DragEvent : ClipboardEvent;
        document.body.dispatchEvent(new Event(kind, {bubbles: true, [key]: transfer}));
    }"""
    for kind, key in (("drop", "dataTransfer"), ("paste", "clipboardData")):
        page.evaluate(program, [b64encode(FILES["odd"]).decode(), kind, key])
        wait_for(page, f"{kind}.png: ")


@pytest.mark.slow
def test_clearing_in_the_middle_does_not_stop_the_page(open_page: Any, tmp_path: Path) -> None:
    for index in range(3):
        (tmp_path / f"{index}.png").write_bytes(encode(make_photo(index)))
    files, page = sorted(tmp_path.iterdir()), open_page()
    page.set_input_files(PICK, files[:1])
    wait_for(page, "0.png: ")
    page.evaluate("""() => new MutationObserver(() => {
        if ($("status").textContent.startsWith("Photo 2 of 3")) clear();
    }).observe($("status"), {childList: true})""")
    page.set_input_files(PICK, files)
    wait_for(page, "2 photos classified")
    assert page.get_by_role("region", name="1.png").is_visible()
    page.set_input_files(PICK, files[:1])
    wait_for(page, "0.png: ")


@pytest.mark.slow
def test_a_photo_dropped_before_the_model_is_there_leaves_the_page_in_its_place(
    browser: Any, address: str
) -> None:
    page = browser.new_page()
    page.add_init_script("WebAssembly.instantiate = () => new Promise(() => {})")  # never there
    page.goto(f"{address}/demo/")
    is_handled = page.evaluate("""() => ["dragover", "drop"].map((kind) => {
        const event = new DragEvent(kind, {bubbles: true, cancelable: true});
        document.body.dispatchEvent(event);
        return event.defaultPrevented;
    })""")
    assert is_handled == [True, True]
    assert "Ready" not in page.get_by_role("status").inner_text()
    page.close()


@pytest.mark.slow
def test_a_page_on_a_disk_works_offline(exported: Path, open_page: Any, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(FILES["odd"])
    folder = shutil.copytree(exported / "demo", tmp_path / "a folder" / "démo")
    page = open_page(url=folder.as_uri() + "/index.html", offline=True)
    page.set_input_files(PICK, tmp_path / "a.png")
    wait_for(page, "a.png: ")


@pytest.mark.slow
def test_the_page_can_send_nothing_even_to_its_own_host(open_page: Any) -> None:
    page = open_page()
    send = "() => fetch('index.html', {method: 'POST'}).then(() => 'sent', (e) => e.message)"
    assert page.evaluate(send).startswith("Failed to fetch")
    assert page.request.get(page.url).ok


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_only_down_and_can_take_photos(
    open_page: Any, tmp_path: Path, scheme: str
) -> None:
    for index, name in enumerate(("a" * 80, "photo of a tulip")):
        (tmp_path / f"{name}.png").write_bytes(encode(make_photo(index)))
    phone = {"width": 320, "height": 640}
    page = open_page(viewport=phone, is_mobile=True, has_touch=True, color_scheme=scheme)
    page.set_input_files(PICK, list(tmp_path.iterdir()))
    wait_for(page, "2 photos classified")
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    assert page.get_by_text("Take a photo").is_visible()
    level = """name => {
        const context = new OffscreenCanvas(1, 1).getContext("2d");
        context.fillStyle = name;
        context.fillRect(0, 0, 1, 1);
        return context.getImageData(0, 0, 1, 1).data[0];
    }"""
    words = page.locator("body").evaluate("body => getComputedStyle(body).color")
    ground = page.locator("#save").evaluate("save => getComputedStyle(save).backgroundColor")
    brighter = page.evaluate(level, words) - page.evaluate(level, ground)
    assert brighter > 128 if scheme == "dark" else brighter < -128


@pytest.mark.slow
def test_the_page_has_the_whole_model_and_class_maps_that_add_up_to_its_logits(
    trained: Trained, exported: Path
) -> None:
    text = (exported / "demo" / "model.js").read_text("ascii")
    values = json.loads(text.removeprefix("const MODEL = ").removesuffix(";\n"))
    assert values["classes"] == CLASSES
    assert values["temperature"] == 1.5
    session = onnxruntime.InferenceSession(b64decode(values["onnx"]))
    crops = crop_batch(trained.task.side("test").images, range(9), PREPROCESS.crop)
    images = {"images": normalised(crops, PREPROCESS)}
    logits, maps = session.run(["logits", "class_maps"], images)
    exact = open_classifier(exported / "model.onnx", engine="onnxruntime")
    np.testing.assert_allclose(logits, exact.forward(crops), atol=1e-5)
    np.testing.assert_allclose(maps.mean((2, 3)) + exact.head[1], logits, atol=1e-4)
    assert maps.shape[2] > 1
