"""The routes of the server. None touches the model: the worker does."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from sonic_kv import __version__
from sonic_kv.errors import NotFoundError
from sonic_kv.server import requests as work
from sonic_kv.server.answers import Completion, kept_body, session_body
from sonic_kv.server.asking import requests_of
from sonic_kv.server.chat import SESSION_ID, Answering
from sonic_kv.server.completions import CompletionRequest, TextCompletion
from sonic_kv.server.page import PARTS, part_of_page
from sonic_kv.server.protocol import ChatRequest, Generation, SessionChange, TextRequest
from sonic_kv.server.service import Service
from sonic_kv.server.stream import outcomes_of

NAME = r"[A-Za-z0-9._:-]{1,128}"


def service_of(request: Request) -> Service:
    """The service behind a request."""
    service: Service = request.app.state.service
    return service


def namespace_of(request: Request) -> str:
    """Whose a request is, as the guard has found."""
    namespace: str = request.state.namespace
    return namespace


Serving = Annotated[Service, Depends(service_of)]
Namespace = Annotated[str, Depends(namespace_of)]
Name = Annotated[str, Path(pattern=f"^{NAME}$")]
Session = Annotated[str | None, Header(alias=SESSION_ID, pattern=f"^{NAME}$")]
router = APIRouter()


@router.get("/healthz")
async def healthz(serving: Serving) -> JSONResponse:
    """Whether requests are being taken."""
    alive = serving.worker.alive
    return JSONResponse({"status": "ok" if alive else "stopped"}, 200 if alive else 503)


@router.get("/health")
async def health(serving: Serving) -> Response:
    """`/healthz`, as vLLM has it."""
    return Response(status_code=200 if serving.worker.alive else 503)


@router.get("/readyz")
async def readyz(serving: Serving) -> JSONResponse:
    """Whether requests can be answered now: the store is reached, and the server is not about to end."""
    worker = serving.worker
    status = "stopped" if not worker.alive else "ok" if worker.ready else "the store does not answer"
    return JSONResponse({"status": status}, 200 if status == "ok" else 503)


@router.get("/version")
async def version() -> JSONResponse:
    """Which sonic-kv this is."""
    return JSONResponse({"version": __version__})


@router.post("/tokenize")
async def tokenize(body: TextRequest, serving: Serving) -> JSONResponse:
    """The token ids of a text, or of a dialogue in the model's chat format."""
    serving.check_model(body.model)
    model = serving.worker.model
    messages = [message.plain() for message in body.messages]

    def tokens() -> list[int]:
        if not messages:
            found: list[int] = model.tokenizer(body.prompt, add_special_tokens=body.add_special_tokens)[
                "input_ids"
            ]
            return found
        form = model.format_told(body.chat_template_kwargs)
        return form.encode(messages).token_ids + (
            form.generation_prompt() if body.add_generation_prompt else []
        )

    found = await asyncio.to_thread(tokens)
    return JSONResponse({"tokens": found, "count": len(found), "max_model_len": model.max_length})


@router.get("/metrics")
async def figures(serving: Serving) -> Response:
    """Figures for Prometheus."""
    return Response(serving.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/v1/models")
async def models(serving: Serving) -> JSONResponse:
    """The one model that is served."""
    return JSONResponse({"object": "list", "data": [serving.model_body()]})


@router.get("/v1/models/{model:path}")
async def model(model: str, serving: Serving) -> JSONResponse:
    """The model, if it is the one that is served."""
    serving.check_model(model)
    return JSONResponse(serving.model_body())


@router.post("/v1/chat/completions")
async def chat(
    request: Request, body: ChatRequest, serving: Serving, namespace: Namespace, session: Session = None
) -> Response:
    """The reply to a dialogue, given whole; whole or as a stream of events."""
    serving.check_model(body.model)
    body.check(serving.options.engine)
    asked = await asyncio.to_thread(requests_of, serving, body, namespace, session)
    completion = Completion(serving.name, body.logprobs, [(one.tools, one.begun) for one in asked])
    return await _answered(serving, request, body, asked, completion)


@router.post("/v1/completions")
async def complete(
    request: Request, body: CompletionRequest, serving: Serving, namespace: Namespace
) -> Response:
    """What follows a text that is no dialogue."""
    serving.check_model(body.model)
    body.check(serving.options.engine)
    prompts = await asyncio.to_thread(body.token_ids, serving.worker.model, serving.most_tokens)
    asked = []
    for prompt in prompts:
        for choice in range(body.n):
            sampling = body.sampling(serving.sampling, serving.options.max_reply_tokens, choice)
            asked.append(work.Request(namespace, prompt=prompt, sampling=sampling))
    return await _answered(serving, request, body, asked, TextCompletion(serving.name))


async def _answered(
    serving: Service, request: Request, body: Generation, asked: list[work.Request], completion: Completion
) -> Response:
    answering = Answering(serving, asked, completion, body.stream_options.include_usage)
    return await (answering.stream(request.receive) if body.stream else answering.whole(request.receive))


async def _see(serving: Service, request: Request, asked: work.Request) -> work.View:
    (outcome,) = await outcomes_of(serving.worker, [asked], request.receive)
    assert outcome.view is not None, "a session that is asked for is shown"
    return outcome.view


@router.get("/v1/sessions")
async def sessions(serving: Serving, namespace: Namespace) -> JSONResponse:
    """The sessions of the caller's key, the newest first."""
    found = await asyncio.wrap_future(serving.worker.sessions(namespace))
    data = [
        {"object": "session", "id": one.name, "title": one.title, "messages": one.messages, "used": one.used}
        for one in found
    ]
    return JSONResponse({"object": "list", "data": data})


@router.delete("/v1/sessions/{session}")
async def erase(session: Name, serving: Serving, namespace: Namespace) -> JSONResponse:
    """Forget a session: its messages, its record and its caches."""
    if not await asyncio.wrap_future(serving.worker.erase(namespace, session)):
        raise NotFoundError(f"there is no session {session!r}")
    return JSONResponse({"object": "session.deleted", "id": session, "deleted": True})


@router.get("/v1/sessions/{session}")
async def session(request: Request, session: Name, serving: Serving, namespace: Namespace) -> JSONResponse:
    """A session: its messages, and what is kept of every segment."""
    return JSONResponse(session_body(await _see(serving, request, work.Request(namespace, name=session))))


@router.get("/v1/sessions/{session}/kept")
async def kept(request: Request, session: Name, serving: Serving, namespace: Namespace) -> JSONResponse:
    """Which tokens of a session's messages its cache still holds, in how many of its heads."""
    view = await _see(serving, request, work.Request(namespace, name=session))
    return JSONResponse(await asyncio.to_thread(kept_body, view))


@router.patch("/v1/sessions/{session}")
async def change(
    request: Request, session: Name, body: SessionChange, serving: Serving, namespace: Namespace
) -> JSONResponse:
    """Compress a session from now on as asked; what is kept of it shrinks at once."""
    asked = work.Request(namespace, name=session, budget=body.budget)
    return JSONResponse(session_body(await _see(serving, request, asked)))


@router.get("/", include_in_schema=False)
async def page() -> Response:
    """The page for people."""
    return part_of_page("index.html")


@router.get("/page/{name}", include_in_schema=False)
async def part(name: str) -> Response:
    """What the page consists of."""
    if name not in PARTS:
        raise HTTPException(404)
    return part_of_page(name)
