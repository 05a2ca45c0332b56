"""Load the server over the loopback: throughput, latency, memory, and hostile bodies.

    python benchmarks/serve.py            20,000 small images, 1,000 hostile bodies
    python benchmarks/serve.py --quick    600 small images, 60 hostile bodies

The network is ResNet-8 at 28 px, whose weights are random. Clients and server share the machine.
"""

import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import psutil
from _timing import ROOT, describe_machine, options, rate

sys.path.insert(0, str(ROOT))

from predict import describe_engines, make_model

from resnets.evaluation.markdown import table
from resnets.export.classifier import open_classifier
from resnets.predict.run import classify
from tests.data.photos import encode, make_photo
from tests.serve.hostile import assert_all_refused, hostile_bodies
from tests.serve.servers import Running, running

CLIENTS = (1, 8, 64)
HEADERS = {"Content-Type": "image/jpeg"}


def load(server: Running, photos: list[bytes], clients: int, num: int) -> tuple[float, list[float]]:
    """Send so many images, one per request on kept connections; return the rate and seconds."""

    def work(client: int) -> list[float]:
        connection, seconds = HTTPConnection("127.0.0.1", server.port, timeout=60), []
        for number in range(client, num, clients):
            start = time.perf_counter()
            connection.request("POST", "/predict", photos[number % len(photos)], HEADERS)
            response = connection.getresponse()
            assert response.read(1) == b"[", response.status
            response.read()
            seconds.append(time.perf_counter() - start)
        connection.close()
        return seconds

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        seconds = [value for values in pool.map(work, range(clients)) for value in values]
    return num / (time.perf_counter() - start), seconds


def measure_load(server: Running, model: Path, photos: list[bytes], num: int) -> None:
    """Print rate and latency for more and more clients, beside `predict` on the same images."""
    classifier = open_classifier(model)
    inputs = [(str(number), photos[number % len(photos)]) for number in range(num)]
    alone = rate(num, lambda: list(classify(inputs, classifier, batch_size=32)))
    rows = [["`predict`, batches of 32", f"{alone:,.0f}", "", ""]]
    for clients in CLIENTS:
        found, seconds = load(server, photos, clients, num)
        middle, last = np.percentile(seconds, [50, 99]) * 1000
        rows.append([f"{clients} clients", f"{found:,.0f}", f"{middle:.1f}", f"{last:.1f}"])
    print(table(["", "images/s", "median ms", "99th percentile ms"], rows))


def measure_batches(model: Path) -> None:
    """Print what batches are worth to the model alone: the best rate of 40 turns."""
    classifier = open_classifier(model)
    crops = np.random.default_rng(0).integers(0, 256, (32, 28, 28, 3), np.uint8)

    def turn(size: int) -> float:
        starts = range(0, len(crops), size)
        return rate(len(crops), lambda: [classifier.score(crops[i : i + size]) for i in starts])

    best = {size: max(turn(size) for _ in range(40)) for size in (1, 4, 16, 32)}
    print("batches of", ", ".join(f"{size}: {value:,.0f} images/s" for size, value in best.items()))


def memory(server: Running) -> float:
    """Return the memory of the server in MB."""
    return float(psutil.Process(server.process.pid).memory_info().rss / 2**20)


def main() -> None:
    """Measure all of it."""
    quick = options(__doc__).quick
    describe_machine()
    describe_engines()
    photos = [encode(make_photo(seed), "JPEG", quality=90) for seed in range(64)]
    with tempfile.TemporaryDirectory() as name:
        make_model("resnet8", Path(name), 28)
        model = Path(name) / "resnet8.onnx"
        measure_batches(model)
        with running(model) as server:
            measure_load(server, model, photos, 200 if quick else 2000)
            before, num = memory(server), 600 if quick else 20_000
            load(server, photos, 8, num)
            print(f"memory after {num:,} more requests: {before:.0f} -> {memory(server):.0f} MB")
            statuses = assert_all_refused(server, hostile_bodies(60 if quick else 1000))
            counts = {status: statuses.count(status) for status in sorted(set(statuses))}
            print(f"hostile bodies by status: {counts}; memory {memory(server):.0f} MB")
            load(server, photos, 1, 10)  # it lives


if __name__ == "__main__":
    main()
