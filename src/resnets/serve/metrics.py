"""Count and time what the server does, for Prometheus."""

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from starlette.requests import Request
from starlette.responses import Response


class Metrics:
    """Hold the metrics of one server, and of its process where the system tells them."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        words = "Requests of /predict by the status of their answer"
        self.requests = Counter("resnets_requests", words, ["status"], registry=registry)
        words = "Images by what became of them: answered or bad"
        self.images = Counter("resnets_images", words, ["outcome"], registry=registry)
        words = "From the head of a request of /predict to its answer"
        self.seconds = Histogram("resnets_request_seconds", words, registry=registry)
        words = "Images that the model computed at once"
        buckets = (1, 2, 4, 8, 16)
        self.batch = Histogram("resnets_batch_images", words, buckets=buckets, registry=registry)
        words = "Images that are decoded, computed, or wait for either"
        self.waiting = Gauge("resnets_images_waiting", words, registry=registry)

    async def show(self, _: Request) -> Response:
        """Answer a request of Prometheus."""
        headers = {"Content-Type": CONTENT_TYPE_LATEST}
        return Response(generate_latest(self.registry), headers=headers)
