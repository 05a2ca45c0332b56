"""Count and time what the server does, for Prometheus."""

import prometheus_client as prom
from starlette.requests import Request
from starlette.responses import Response


class Metrics:
    """Hold the metrics of one server, and of its process where the system tells them."""

    def __init__(self) -> None:
        self.registry = registry = prom.CollectorRegistry()
        prom.ProcessCollector(registry=registry)
        words = "Requests of /predict by the status of their answer"
        self.requests = prom.Counter("resnets_requests", words, ["status"], registry=registry)
        words = "Images by what became of them: answered or bad"
        self.images = prom.Counter("resnets_images", words, ["outcome"], registry=registry)
        words = "From the head of a request of /predict to its answer"
        self.seconds = prom.Histogram("resnets_request_seconds", words, registry=registry)
        words, buckets = "Images that the model computed at once", (1, 2, 4, 8, 16)
        self.batch = prom.Histogram(
            "resnets_batch_images", words, buckets=buckets, registry=registry
        )
        words = "Images that are decoded, computed, or wait for either"
        self.waiting = prom.Gauge("resnets_images_waiting", words, registry=registry)

    async def show(self, _: Request) -> Response:
        """Answer a request of Prometheus."""
        headers = {"Content-Type": prom.CONTENT_TYPE_LATEST}
        return Response(prom.generate_latest(self.registry), headers=headers)
