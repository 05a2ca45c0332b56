"""Answer the images of many requests with one model: decode in threads, score together.

Whenever the model becomes free it takes what waits, up to a batch: nobody waits for company, and
under load the batches grow by themselves.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnets.export.classifier import Classifier
from resnets.predict.answers import Answer
from resnets.predict.run import prepare, score
from resnets.serve.limits import Limits, Refused
from resnets.serve.metrics import Metrics
from resnets.system.runtime import allowed_cpus

MAX_BATCH = 16  # larger ones gain nothing on a CPU, and a new image waits for the whole of one
Waiting = tuple[NDArray[np.uint8], asyncio.Future[dict[str, Any]]]  # a crop, and who wants it


class Batcher:
    """Hold a model, the threads that feed it and the crops that wait for it."""

    def __init__(self, classifier: Classifier, limits: Limits, metrics: Metrics) -> None:
        self.classifier, self.limits, self.metrics = classifier, limits, metrics
        self.decoders = ThreadPoolExecutor(len(allowed_cpus()), "decode")
        self.scorer = ThreadPoolExecutor(1, "score")
        self.queue: asyncio.Queue[Waiting] = asyncio.Queue()  # bounded by limits.waiting
        self.num_waiting = 0  # images that are decoded, scored, or wait for either
        metrics.waiting.set_function(lambda: self.num_waiting)

    async def answer(self, images: list[tuple[str, bytes]]) -> list[Answer]:
        """Answer images, names and contents, in order; refuse them where too many wait already."""
        if self.num_waiting + len(images) > self.limits.waiting:
            raise Refused(429, f"{self.num_waiting} images wait already", "try again in a moment")
        self.num_waiting += len(images)
        try:
            async with asyncio.timeout(self.limits.seconds):
                return await asyncio.gather(*(self._answer(*image) for image in images))
        except TimeoutError:
            what = f"no answer within {self.limits.seconds:g} seconds"
            raise Refused(503, what, "try again later, or with fewer images") from None
        finally:
            self.num_waiting -= len(images)

    async def _answer(self, path: str, content: bytes) -> Answer:
        loop, form = asyncio.get_running_loop(), self.classifier.meta.preprocess
        most = self.limits.megapixels
        answer = await loop.run_in_executor(self.decoders, prepare, path, content, form, most)
        if answer.crop is None:
            return answer
        future: asyncio.Future[dict[str, Any]] = loop.create_future()
        self.queue.put_nowait((answer.crop, future))
        return replace(answer, **await future)

    async def _score_for_ever(self) -> None:
        """Score what waits, batch after batch; who asked gets the values, or the error."""
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self.queue.get()]
            while not self.queue.empty() and len(batch) < MAX_BATCH:
                batch.append(self.queue.get_nowait())
            batch = [waiting for waiting in batch if not waiting[1].done()]  # the others gave up
            crops = [crop for crop, _ in batch]
            scored = await loop.run_in_executor(self.scorer, self._score, crops)
            for (_, future), values in zip(batch, scored, strict=True):
                if future.done():
                    continue
                if isinstance(values, Exception):
                    future.set_exception(values)
                else:
                    future.set_result(values)

    def _score(self, crops: list[NDArray[np.uint8]]) -> Sequence[dict[str, Any] | Exception]:
        """Return what the model makes of each crop, or for all of them why it cannot."""
        if not crops:
            return []
        self.metrics.batch.observe(len(crops))
        try:
            return list(score(np.stack(crops), self.classifier))
        except Exception as error:
            return [error] * len(crops)

    @asynccontextmanager
    async def run(self, _: object) -> AsyncIterator[None]:
        """Let the model score while the server is up."""
        scoring = asyncio.create_task(self._score_for_ever())
        yield
        scoring.cancel()
        for pool in (self.decoders, self.scorer):
            pool.shutdown(wait=False, cancel_futures=True)
