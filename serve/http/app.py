"""The ASGI application that serves a bundle from its own process."""

from pathlib import Path

from fastapi import FastAPI

from nemo_trt.bundle import Bundle
from nemo_trt.engines.runner import Runner
from nemo_trt.serve.lifetime import Lifetime
from nemo_trt.serve.options import ServeOptions
from nemo_trt.where import CPU, Where

from .application import application
from .local_service import LocalService


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
    lifetime = Lifetime.begin(
        source, where, options, max_batch=max_batch, max_seq_len=max_seq_len, threads=threads
    )
    return application(LocalService(lifetime))
