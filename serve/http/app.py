"""The ASGI application: routes around one engine."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI

from nemo_trt import __version__
from nemo_trt.config import ModelConfig
from nemo_trt.engines.backend import Backend, backend_of
from nemo_trt.engines.ort_session import affordable_seq_len
from nemo_trt.engines.runner import Runner
from nemo_trt.serve.options import ServeOptions

from . import chat, completions, errors, plain
from .gate import Gate
from .page import mount_page
from .service import Service

CACHE_SHARE = 0.25  # of this machine's memory, for the slots of a bundle that runs on its CPU


def create_app(
    source: Path | Runner,
    *,
    options: ServeOptions | None = None,
    engine: str | None = None,
    max_batch: int = 8,
    max_seq_len: int | None = None,
    threads: int | None = None,
    backend: Backend = "cpu",
) -> FastAPI:
    """Make the application that serves a bundle, alone or mounted in another one.

    A bundle is opened in the background, at once: until it is open, requests get 503. When the
    application's lifespan ends, the engine is closed. A mounted application has no lifespan of its
    own: call `app.state.service.close()` when yours ends.

        app = create_app(Path("bundle"))              # uvicorn.run(app)
        other.mount("/llm", create_app(runner))       # in a Starlette or FastAPI application

    Args:
        source: a bundle, or an open Runner, which is taken over.
        options: how the server behaves.
        engine, max_batch, max_seq_len, threads, backend: see `Runner.open`; of a bundle alone. An
            engine has rows and lengths of its own.

    Returns:
        The application; `app.state.service` has `wait`, `drain`, `close`, `engine` (an
        `AsyncEngine`) and `describe`.

    Raises:
        BundleError: the bundle is missing, or it has not passed validation and must have.
        BuildError: it has no such engine.
    """
    options = options or ServeOptions()
    if isinstance(source, Runner):
        bundle = source.session.bundle
        engine = source.session.describe().get("engine")
        backend = backend_of(source.session)
    else:
        bundle = source

    def opener(config: ModelConfig) -> Runner:
        if isinstance(source, Runner):
            return source
        if engine is not None:
            return Runner.open(source, engine=engine)
        length = max_seq_len
        if backend == "cpu":
            length = length or affordable_seq_len(config, max_batch, share=CACHE_SHARE)
        return Runner.open(
            source, max_batch=max_batch, max_seq_len=length, threads=threads, backend=backend
        )

    service = Service(bundle, engine, opener, options, backend)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title="nemo-trt",
        version=__version__,
        description="OpenAI's API over one model.",
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    for part in (chat, completions, plain):
        app.include_router(part.router)
    mount_page(app)
    errors.install(app)
    app.add_middleware(Gate, options=options, metrics=service.metrics)
    return app
