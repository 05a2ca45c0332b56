"""Define what the server answers: /predict, and pages that say what it is."""

import json
from collections.abc import Callable
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from resnets.export.classifier import open_classifier
from resnets.predict.answers import name_columns, to_object
from resnets.serve.batcher import Batcher
from resnets.serve.limits import Bodies, Limits, Refused, split_body
from resnets.serve.metrics import Metrics
from resnets.system.runtime import Engine

HERE = Path(__file__).parent
BUSY = {"Retry-After": "1"}
HOME = "Send an image to /predict; /docs says how.\n"


def build_app(model: Path, limits: Limits, engine: Engine = "auto") -> Starlette:
    """Return what serves a model, once it has scored; raise what `open_classifier` raises."""
    classifier, metrics = open_classifier(model, engine=engine), Metrics()
    meta, form, card = classifier.meta, classifier.meta.preprocess, model.parent / "model_card.md"
    for number in (1, 2):  # an engine may compile the model for one alone and for several
        classifier.score(np.zeros((number, form.crop, form.crop, form.channels), np.uint8))
    batcher, demo = Batcher(classifier, limits, metrics), model.parent / "demo"
    text = card.read_text(encoding="utf-8") if card.is_file() else None
    description = _describe(meta.classes)
    constant: dict[str, Callable[..., Any]] = {
        "/healthz": PlainTextResponse("ok\n"),
        "/model": JSONResponse({"card": text, "meta": meta.model_dump()}),
        "/metrics": metrics.show,
        "/openapi.json": JSONResponse(description),
        "/docs": HTMLResponse(_write_page(description, meta.classes, limits)),
    }
    predict = partial(_predict, batcher, Bodies(limits))
    routes: list[BaseRoute] = [Route("/predict", predict, methods=["POST"])]
    if demo.is_dir():
        routes.append(Mount("/", StaticFiles(directory=demo, html=True)))
    else:
        constant["/"] = PlainTextResponse(HOME)
    routes[1:1] = [Route(path, page, methods=["GET"]) for path, page in constant.items()]
    return Starlette(routes=routes, lifespan=batcher.run)


async def _predict(batcher: Batcher, bodies: Bodies, request: Request) -> Response:
    """Answer with one row per image (422 if some are bad), or why there is no answer."""
    status, metrics = 500, batcher.metrics
    try:
        with metrics.seconds.time():
            rows = await _rows(batcher, bodies, request)
        status = 422 if any(row["error"] for row in rows) else 200
        return JSONResponse(rows, status)
    except Refused as error:
        status = error.status
        headers = {408: {"Connection": "close"}, 429: BUSY, 503: BUSY}.get(status)
        return JSONResponse({"error": error.what, "fix": error.fix}, status, headers)
    except ClientDisconnect:  # who left hears nothing
        status = 400
        return Response(status_code=status)
    finally:
        metrics.requests.labels(status).inc()


async def _rows(batcher: Batcher, bodies: Bodies, request: Request) -> list[dict[str, Any]]:
    kind, rows = request.headers.get("content-type", ""), []
    async with bodies.read(request) as body:
        images = split_body(kind, body, batcher.limits.images)
        answers = await batcher.answer(images)
    classes = batcher.classifier.meta.classes
    for answer in answers:
        batcher.metrics.images.labels("bad" if answer.error else "answered").inc()
        fix = answer.fix.replace("checks.max_megapixels", "--max-megapixels of the server")
        rows.append(to_object(answer, classes) | ({"fix": fix} if answer.error else {}))
    return rows


def _describe(classes: list[str]) -> dict[str, Any]:
    """Return the OpenAPI description, with a probability for each class."""
    description: dict[str, Any] = json.loads((HERE / "openapi.json").read_text(encoding="utf-8"))
    fields = description["components"]["schemas"]["Answer"]["properties"]
    for name in name_columns(classes):
        fields.setdefault(name, {"type": ["number", "null"], "minimum": 0, "maximum": 1})
    return description


def _write_page(description: dict[str, Any], classes: list[str], limits: Limits) -> str:
    """Write the page for people, which needs nothing from other servers."""
    rows = "\n".join(
        f"<tr><td><code>{method.upper()} {path}</code><td>{escape(action['summary'])}</tr>"
        for path, actions in description["paths"].items()
        for method, action in actions.items()
    )
    page = (HERE / "docs.html").read_text(encoding="utf-8")
    return page.format(classes=escape(", ".join(classes)), rows=rows, limits=limits)
