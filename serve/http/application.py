"""The routes around one service."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from nemo_trt import __version__

from . import anthropic, chat, completions, errors, responses, routes
from .cors import allow_origins
from .head import HeadAsGet
from .middleware import RequestMiddleware
from .page import mount_page
from .service import Service


def application(service: Service) -> FastAPI:
    """The ASGI application of a service, which its lifespan begins and closes."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.begin()
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
    app.add_middleware(RequestMiddleware, options=service.options, metrics=service.metrics)
    allow_origins(app, service.options)
    return app
