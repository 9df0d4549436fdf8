"""The ASGI application: routes around one engine."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI

from nemo_trt import __version__
from nemo_trt.bundle import Bundle
from nemo_trt.defaults import SLOTS
from nemo_trt.engines.ort_session import affordable_seq_len
from nemo_trt.engines.runner import Runner
from nemo_trt.serve.approval import require_verdict
from nemo_trt.serve.options import ServeOptions
from nemo_trt.where import CPU, Where

from . import anthropic, chat, completions, errors, responses, routes
from .cors import allow_origins
from .head import HeadAsGet
from .local_service import LocalService
from .middleware import RequestMiddleware
from .page import mount_page

CACHE_SHARE = 0.25  # of this machine's memory, for the slots of a bundle that runs on its CPU


def create_app(
    source: Bundle | Path | Runner,
    where: Where | str = CPU,
    *,
    options: ServeOptions | None = None,
    max_batch: int | None = None,
    max_seq_len: int | None = None,
    threads: int | None = None,
) -> FastAPI:
    """Create the ASGI application that serves a bundle, standalone or mounted in another one.

    The call starts to open the bundle in the background; until it is open, requests get 503. The
    engine is closed when the application's lifespan ends. A mounted application has no lifespan of
    its own: call `app.state.service.close()` when yours ends.

        app = create_app(Path("bundle"))              # uvicorn.run(app)
        other.mount("/llm", create_app(runner))       # in a Starlette or FastAPI application

    Args:
        source: an open bundle, its folder, or an open Runner, which the application then owns.
        where: "cpu", "cuda", or the name of one of the bundle's engines; a Runner has its own.
        options: the server's settings.
        max_batch: number of slots; by default 8, or fewer if fewer rows were validated. An engine
            and a Runner have their own.
        max_seq_len: maximum tokens of prompt and answer together; by default the validated context,
            as far as memory allows. An engine and a Runner have their own.
        threads: compute threads; CPU only.

    Returns:
        The application; `app.state.service` has `wait`, `drain`, `close`, `engine` (an
        `AsyncEngine`) and `describe`.

    Raises:
        BundleError: the bundle is missing, or has not passed validation for these rows and this
            context.
        BuildError: the bundle has no such engine.
    """
    options = options or ServeOptions()
    if isinstance(source, Runner):
        session = source.session
        bundle, where = session.bundle, session.where
        max_batch, max_seq_len = session.max_batch, session.max_seq_len
    else:
        bundle, where = Bundle.open(source), Where.of(where)
    verdict = require_verdict(bundle, where, options, max_batch=max_batch, max_seq_len=max_seq_len)
    judged = verdict.coverage if verdict.passed else None

    def opener() -> Runner:
        if isinstance(source, Runner):
            return source
        rows, length = max_batch, max_seq_len
        if where.kind != "engine":
            rows = rows or (min(SLOTS, judged.max_batch) if judged else SLOTS)
            length = length or (judged.max_seq_len if judged else None)
        if where.kind == "cpu":
            affordable = affordable_seq_len(bundle.config, rows or 1, share=CACHE_SHARE)
            length = max_seq_len or min(affordable, length or affordable)
        return Runner.open(bundle, where, max_batch=rows, max_seq_len=length, threads=threads)

    service = LocalService(bundle, verdict, opener, options)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title="nemo-trt",
        version=__version__,
        description="OpenAI's and Anthropic's APIs over one model.",
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    for part in (chat, completions, responses, anthropic, routes):
        app.include_router(part.router)
    mount_page(app)
    errors.install(app)
    app.add_middleware(HeadAsGet)
    app.add_middleware(RequestMiddleware, options=options, metrics=service.metrics)
    allow_origins(app, options)
    return app
