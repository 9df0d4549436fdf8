"""OpenAI's API and the chat page inside a service of your own.

Usage: BUNDLE=bundle uvicorn --app-dir examples mount_app:app   then open http://127.0.0.1:8000/llm/
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI

from nemo_trt import SamplingParams, ServeOptions, create_app

llm = create_app(
    Path(os.environ["BUNDLE"]),
    options=ServeOptions(model_name="nemo", max_queue=32),
    max_batch=4,
    max_seq_len=1024,
)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """A mounted application has no lifespan of its own."""
    yield
    llm.state.service.close()


app = FastAPI(lifespan=lifespan)
app.mount("/llm", llm)


@app.get("/capital/{country}")
async def capital(country: str) -> dict[str, str]:
    """A route of this service asks the same engine, without HTTP in between."""
    engine = llm.state.service.require()
    question = [{"role": "user", "content": f"What is the capital of {country}?"}]
    tokens = engine.tokenizer.chat(question)
    async with engine.generate(tokens, SamplingParams(max_tokens=32)) as answer:
        return {"answer": "".join([event.text async for event in answer])}
