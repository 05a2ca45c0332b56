"""Test `resnets serve`: the answers of `predict`, whatever comes, until it is told to end."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resnets.export.classifier import open_classifier
from resnets.export.onnx import to_onnx
from resnets.models.bundle import load_bundle
from resnets.predict.answers import Reports
from resnets.predict.run import predict
from resnets.serve.app import build_app
from resnets.serve.batcher import MAX_BATCH, Batcher
from resnets.serve.limits import MAX_BODIES, Limits
from resnets.serve.metrics import Metrics
from resnets.serve.run import listen, serve
from resnets.system.errors import DataError, EnvironmentFault, ParamsError
from tests.bundles import CLASSES, Trained, make_trained
from tests.data.photos import encode, make_photo
from tests.serve.hostile import assert_all_refused, hostile_bodies
from tests.serve.servers import FORM, Answered, Running, form, running

LIMITS = Limits(megabytes=1, images=8, megapixels=1, seconds=1, waiting=16)
OPTIONS = ("--max-megabytes", "1", "--max-images", "8", "--max-megapixels", "1")
OPTIONS += ("--max-seconds", "1", "--max-waiting", "16")
FORM_KIND = {"Content_Type": FORM["Content-Type"]}
PHOTO = make_photo(0)
BAD = {  # what no decoder takes
    "empty.png": b"",
    "page.jpg": b"<!DOCTYPE html><p>404",
    "cut.png": encode(PHOTO)[:-300],
    "cut.jpg": encode(PHOTO, "JPEG")[:-300],
    "thin.png": encode(Image.new("L", (3000, 1))),
    "large.png": encode(Image.new("1", (1200, 1200))),
    "float.tif": encode(Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF"),
    "photo.ico": encode(PHOTO, "ICO"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Make a bundle, and beside it the same model as model.onnx."""
    trained = make_trained(tmp_path_factory.mktemp("trained"), num=40)
    model = to_onnx(load_bundle(trained.bundle))
    (trained.bundle.parent / "model.onnx").write_bytes(model.SerializeToString())
    return trained


@pytest.fixture(scope="module")
def model(trained: Trained) -> Path:
    return trained.bundle.parent / "model.onnx"


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Running]:
    with running(model, *OPTIONS) as server:
        yield server


@pytest.fixture(scope="module")
def files(trained: Trained) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(trained.photos.rglob("*.png"))}


def is_well(server: Running, files: dict[str, bytes]) -> bool:
    """Tell whether a server still classifies."""
    content = next(iter(files.values()))
    return server.ask(content, Content_Type="image/png").json[0]["predicted"] in CLASSES


def predicted(model: Path, files: dict[str, bytes], folder: Path) -> list[dict[str, Any]]:
    """Return what `resnets predict` says of the files, by their names only."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    named, output = [str(folder / name) for name in files], folder / "answers.json"
    reports = Reports(output=output)
    try:
        predict(named, (), model=model, reports=reports, batch_size=8)
    except DataError:
        assert any(name in BAD for name in files)
    return [row | {"path": Path(row["path"]).name} for row in json.loads(output.read_text())]


def same(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> bool:
    """Tell whether rows have the same fields and values, up to the last bits of a batch."""
    assert [list(row) for row in rows] == [list(row) for row in others]
    pairs = [pair for row, other in zip(rows, others, strict=True)
             for pair in zip(row.values(), other.values(), strict=True)]  # fmt: skip
    return all(a == (pytest.approx(b, abs=2e-6) if isinstance(b, float) else b) for a, b in pairs)


# ---- answers ------------------------------------------------------------------------------------


def test_answers_are_those_of_predict(
    server: Running, model: Path, files: dict[str, bytes], tmp_path: Path
) -> None:
    some = dict(list(files.items())[:8])
    answered = server.ask(form(some), **FORM_KIND)
    assert answered.status == 200
    assert same(answered.json, predicted(model, some, tmp_path))
    for content, row in zip(some.values(), answered.json, strict=True):
        for kind in ("image/png", "application/octet-stream", "image/jpeg"):
            [alone] = server.ask(content, Content_Type=kind).json
            assert same([alone], [row | {"path": "image"}])


def test_bad_images_get_the_reason_of_predict_and_a_fix(
    server: Running, model: Path, files: dict[str, bytes], tmp_path: Path
) -> None:
    bad = {name: content for name, content in BAD.items() if name != "large.png"}
    mixed = {"good.png": next(iter(files.values())), **bad}
    answered = server.ask(form(mixed), **FORM_KIND)
    fixes = [row.pop("fix", "") for row in answered.json]
    rows = [{k: v for k, v in row.items() if k != "fix"} for row in answered.json]
    assert answered.status == 422
    assert same(rows, predicted(model, mixed, tmp_path))
    assert [bool(row["error"]) for row in rows] == [False, *[True] * len(bad)]
    assert len(fixes) == len(mixed)
    assert all("fix" in row for row in answered.json if row["error"])
    [large] = server.ask(BAD["large.png"], Content_Type="image/png").json
    assert large["error"] == "1200×1200 is 1 megapixels; at most 1.0"
    assert large["fix"] == "scale it down, or raise --max-megapixels of the server"


def test_many_clients_get_the_answers_of_one(server: Running, files: dict[str, bytes]) -> None:
    def ask(content: bytes) -> list[dict[str, Any]]:
        return list(server.ask(content, Content_Type="image/png").json)

    alone = list(map(ask, files.values()))
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(ask, files.values()))
    assert all(same(rows, others) for rows, others in zip(together, alone, strict=True))


def test_what_waits_is_scored_together_and_one_image_waits_for_nobody(
    model: Path, files: dict[str, bytes]
) -> None:
    metrics = Metrics()
    batcher = Batcher(open_classifier(model), replace(LIMITS, waiting=99, seconds=60), metrics)
    images = list(files.items())[: MAX_BATCH + 4]

    def batches() -> tuple[float, float]:
        value = metrics.registry.get_sample_value
        return value("resnets_batch_images_count"), value("resnets_batch_images_sum")

    async def ask() -> None:
        waiting = asyncio.create_task(batcher.answer(images))
        while batcher.queue.qsize() < len(images):
            await asyncio.sleep(0)
        async with batcher.run(None):
            together = await waiting
            assert batches() == (2, len(images))
            [alone] = await batcher.answer(images[:1])
            assert batches() == (3, len(images) + 1)
        np.testing.assert_allclose(alone.probabilities, together[0].probabilities, atol=2e-6)

    asyncio.run(ask())


# ---- limits -------------------------------------------------------------------------------------


async def call(app: Any, path: str, body: bytes | None = None) -> Answered:
    """POST a form to an application, or GET without one, as a server of ASGI does."""
    messages: list[dict[str, Any]] = []
    is_sent = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if is_sent.is_set():  # there is nothing more to come, and the client stays
            await asyncio.Event().wait()
        is_sent.set()
        return {"type": "http.request", "body": body or b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        messages.append(message)

    method = "GET" if body is None else "POST"
    headers = [(name.lower().encode(), value.encode()) for name, value in FORM.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    await app({**scope, "query_string": b"", "root_path": "", "http_version": "1.1"}, receive, send)
    found = {name.decode(): value.decode() for name, value in messages[0]["headers"]}
    content = b"".join(message.get("body", b"") for message in messages)
    return Answered(messages[0]["status"], found, content)


def test_too_many_images_get_429_and_the_others_their_answers(
    model: Path, files: dict[str, bytes]
) -> None:
    app = build_app(model, replace(LIMITS, seconds=60))
    body = form(dict(list(files.items())[:8]))

    async def ask() -> None:
        waiting = [
            asyncio.create_task(call(app, "/predict", body)) for _ in range(2)
        ]  # nothing scores yet
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        late = await call(app, "/predict", form({"a.png": b""}))
        assert (late.status, late.headers["retry-after"]) == (429, "1")
        assert late.json == {"error": "16 images wait already", "fix": "try again in a moment"}
        async with app.router.lifespan_context(app):
            for answered in await asyncio.gather(*waiting):
                assert (answered.status, len(answered.json)) == (200, 8)
            assert (await call(app, "/predict", body)).status == 200

    asyncio.run(ask())


def test_an_answer_that_takes_too_long_is_given_up(model: Path, files: dict[str, bytes]) -> None:
    app = build_app(model, replace(LIMITS, seconds=0.2))
    body = form(dict(list(files.items())[:8]))

    async def ask() -> None:
        for _ in range(3):  # 24 images: who gave up makes room
            answered = await call(app, "/predict", body)
            assert (answered.status, answered.headers["retry-after"]) == (503, "1")
            assert answered.json["error"] == "no answer within 0.2 seconds"
        async with app.router.lifespan_context(app):
            for _ in range(20):  # what nobody waits for is not scored
                if (await call(app, "/predict", body)).status == 200:
                    return
        raise AssertionError("never answered again")

    asyncio.run(ask())


def test_a_failure_while_scoring_is_told_to_nobody_and_ends_nothing(
    model: Path, files: dict[str, bytes]
) -> None:
    classifier, faults = open_classifier(model), [MemoryError("/secret/path")]
    classifier.score(np.zeros((1, 28, 28, 3), np.uint8))  # compiles it, which may take long

    def forward(crops: Any) -> Any:
        if faults:
            raise faults.pop()
        return classifier.forward(crops)

    batcher = Batcher(replace(classifier, forward=forward), LIMITS, Metrics())

    async def ask() -> None:
        async with batcher.run(None):
            images = list(files.items())[:1]
            with pytest.raises(MemoryError):
                await batcher.answer(images)
            [answer] = await batcher.answer(images)
            assert answer.probabilities is not None

    asyncio.run(ask())


MEGABYTE = b"x" * 1_000_001
LONG_NAME = form({"n" * 5000: b""})
PLAIN = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--b--\r\n'


@pytest.mark.parametrize(
    ("body", "kind", "status", "words"),
    [
        (MEGABYTE, "image/png", 413, "a body of more than 1,000,000 bytes"),
        (form({"a.png": MEGABYTE}), FORM["Content-Type"], 413, "a body of more than 1,000,000"),
        (form({f"{n}": b"" for n in range(9)}), FORM["Content-Type"], 413, "at most 8 images"),
        (LONG_NAME, FORM["Content-Type"], 413, "header length"),
        (form({"a.png": b""})[:-6], FORM["Content-Type"], 400, "Unexpected end"),
        (form({"a.png": b""}), "multipart/form-data", 400, "Empty boundary"),
        (form({}), FORM["Content-Type"], 400, "fields are not files"),
        (PLAIN, "multipart/form-data; boundary=b", 400, "fields are not files"),
        (b"", "multipart/form-data; boundary=b", 400, "Unexpected end"),
        (b"\xff" * 999, "multipart/form-data; boundary=b", 400, "not a whole form"),
        (b"a=1", "application/x-www-form-urlencoded", 415, "x-www-form-urlencoded"),
        (b"{}", "application/json", 415, "application/json"),
        (encode(PHOTO), "text/html", 415, "text/html"),
        (encode(PHOTO), "multipart/mixed; boundary=b", 415, "multipart/mixed"),
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused_in_two_lines(
    server: Running, body: bytes, kind: str, status: int, words: str
) -> None:
    answered = server.ask(body, Content_Type=kind)
    assert answered.status == status
    assert words in answered.json["error"]
    assert answered.json["fix"]


def test_a_body_without_a_length_is_bounded_too(server: Running, files: dict[str, bytes]) -> None:
    pieces = iter([b"x" * 100_000] * 11)
    assert server.ask(pieces, Content_Type="image/png").status == 413
    assert server.ask(iter(files.values()), Content_Type="image/png").status == 200  # the first


def test_a_compressed_body_is_not_unpacked(server: Running, files: dict[str, bytes]) -> None:
    body = zlib.compress(next(iter(files.values())))
    for name in ("gzip", "deflate", "br"):
        assert server.ask(body, Content_Type="image/png", Content_Encoding=name).status == 422


def test_slow_bodies_are_given_up(server: Running, files: dict[str, bytes]) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\n"
    with ThreadPoolExecutor(4) as pool:
        for answer in pool.map(server.send, [head + b"x", head] * 2):
            assert answer
            assert answer.status == 408
            assert answer.json["error"] == "no whole request within 1 seconds"
    assert is_well(server, files)


def counters(server: Running) -> dict[str, float]:
    """Return what the server counted, by name and labels."""
    lines = server.ask(path="/metrics").body.decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def test_a_client_that_leaves_while_it_sends_is_no_fault_of_the_server(server: Running) -> None:
    left, fault = (f'resnets_requests_total{{status="{status}"}}' for status in (400, 500))
    before = counters(server)
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx")
    for _ in range(1000):  # until it has noticed
        after = counters(server)
        if after.get(left, 0) + after.get(fault, 0) > before.get(left, 0) + before.get(fault, 0):
            break
    assert after[left] == before.get(left, 0) + 1
    assert after.get(fault) == before.get(fault)


def test_bodies_held_together_are_bounded(server: Running, files: dict[str, bytes]) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 999999\r\n\r\n"
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(server.send, [head + b"x" * 999_998] * (2 * MAX_BODIES)))
    assert {answer.status for answer in answers if answer} == {408, 429}
    assert is_well(server, files)


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 600_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: a\r\n" * 100_000 + b"\r\n",
        b"GET /" + b"a" * 600_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 99 + b"\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\nxx",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 30 + b"\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /predict HTTP/1.1\r\nX Y: z\r\n\r\n",
    ],
)
def test_broken_heads_are_refused(server: Running, head: bytes, files: dict[str, bytes]) -> None:
    answer = server.send(head)
    assert answer is None or 400 <= answer.status < 500
    assert is_well(server, files)


@pytest.mark.parametrize("num", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_hostile_bodies_get_no_200_and_end_nothing(
    server: Running, files: dict[str, bytes], num: int
) -> None:
    assert set(assert_all_refused(server, hostile_bodies(num))) == {400, 413, 415, 422}
    assert is_well(server, files)


@pytest.mark.slow
def test_a_connection_on_which_nothing_gets_done_is_closed(
    server: Running, files: dict[str, bytes]
) -> None:
    with ThreadPoolExecutor(3) as pool:
        silent = pool.submit(server.send)
        head = pool.submit(server.send, b"GET / HTTP/1.1\r\nHost: x\r\n")
        done = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
        assert [silent.result(), head.result()] == [None, None]
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
            connection.sendall(done)
            for number in range(10**6):  # a second request that never ends
                try:
                    connection.sendall(b"GET / HTTP/1.1\r\n" if not number else b"X: y\r\n")
                except ConnectionError:
                    break
            else:
                raise AssertionError("never closed")
    assert is_well(server, files)


# ---- the server ---------------------------------------------------------------------------------


def test_sigterm_ends_it_when_what_is_under_way_is_answered(
    model: Path, files: dict[str, bytes]
) -> None:
    content = next(iter(files.values()))
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
    head += f"Content-Length: {len(content)}\r\n\r\n".encode()
    with running(model) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
            connection.sendall(head)
            assert connection.recv(999) == b"HTTP/1.1 100 Continue\r\n\r\n"  # it reads the body
            server.process.send_signal(signal.SIGTERM)
            while True:
                try:
                    socket.create_connection(("127.0.0.1", server.port)).close()
                except ConnectionRefusedError:
                    break
            connection.sendall(content)
            response = HTTPResponse(connection)
            response.begin()
            assert response.status == 200
            assert json.loads(response.read())[0]["predicted"] in CLASSES
        assert server.process.wait(60) == 0


def test_every_path_is_described_and_tells_nothing_of_the_machine(
    server: Running, model: Path, files: dict[str, bytes]
) -> None:
    description = server.ask(path="/openapi.json").json
    for path, actions in description["paths"].items():
        for method, action in actions.items():
            body = next(iter(files.values())) if method == "post" else None
            answered = server.ask(body, path)
            assert str(answered.status) in action["responses"]
            assert server.ask(b"" if body is None else None, path).status == 405
            for folder in (model.parent, Path(__file__).parents[2]):
                assert str(folder).encode() not in answered.body
    [row] = server.ask(next(iter(files.values()))).json
    assert {*row, "fix"} == set(description["components"]["schemas"]["Answer"]["properties"])
    page = server.ask(path="/docs").body.decode()
    assert all(f"<code>{m.upper()} {path}</code>" in page
               for path, actions in description["paths"].items() for m in actions)  # fmt: skip
    assert "tulip|&lt;b&gt;" in page
    assert "//" not in page  # nothing from other servers
    assert server.ask(path="/model").json["meta"]["classes"] == CLASSES
    assert server.ask(path="/nowhere").status == 404


def test_metrics_count_what_was_answered(server: Running, files: dict[str, bytes]) -> None:
    before = counters(server)
    server.ask(form({**dict(list(files.items())[:3]), "bad.png": b""}), **FORM_KIND)
    after = counters(server)
    names = ('resnets_requests_total{status="422"}', 'resnets_images_total{outcome="bad"}')
    names += ('resnets_images_total{outcome="answered"}', "resnets_request_seconds_count")
    grown = [after[name] - before.get(name, 0) for name in names]
    assert grown == [1, 1, 3, 1]
    assert after["resnets_images_waiting"] == 0


def test_the_demo_page_is_served_where_it_lies_beside_the_model(
    server: Running, model: Path, tmp_path: Path
) -> None:
    assert server.ask(path="/").body == b"Send an image to /predict; /docs says how.\n"
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo/index.html").write_text("<p>demo")
    (tmp_path / "model.onnx").write_bytes(model.read_bytes())
    (tmp_path / "model_card.md").write_text("# card")
    (tmp_path / "demo/link").symlink_to("/etc/hostname")
    app = build_app(tmp_path / "model.onnx", LIMITS)

    def get(path: str) -> Answered:
        return asyncio.run(call(app, path))

    assert get("/").body == b"<p>demo"
    assert get("/model").json["card"] == "# card"
    assert get("/healthz").body == b"ok\n"
    for path in ("/../model.onnx", "/demo/../../model.onnx", "//etc/hostname", "/link"):
        assert get(path).status == 404


def test_what_stops_the_server_from_starting(server: Running, model: Path) -> None:
    with pytest.raises(EnvironmentFault, match=f"127.0.0.1:{server.port}: Address already in use"):
        serve(model, "127.0.0.1", server.port, LIMITS)
    with pytest.raises(ParamsError, match="--max-waiting 3 is below --max-images 64"):
        Limits(waiting=3)
    for key in ("megabytes", "megapixels", "seconds"):
        for number in (float("inf"), float("nan")):
            with pytest.raises(ParamsError, match=f"--max-{key} is {number}"):
                Limits(**{key: number})
    program = "import sys; sys.modules['uvicorn'] = None\nfrom resnets.cli import main\nmain()"
    command = [sys.executable, "-c", program, "serve", "--model", str(model)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert done.stderr.startswith("error: the package uvicorn is missing\nfix: ")


def test_answers_do_not_wait_to_be_packed_together() -> None:
    with listen("127.0.0.1", 0) as listener:
        with socket.create_connection(listener.getsockname()):
            connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
