# requires: pydantic-ai-slim[openai]==2.68.0
"""Pydantic AI: typed output, tools and streams, by chat completions and by Responses."""

import asyncio
import sys
from typing import Literal

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

url, name = sys.argv[1:]


class City(BaseModel):
    name: Literal["Rome", "Bern"]


async def main() -> None:
    provider = OpenAIProvider(base_url=url, api_key="x")
    settings = {"max_tokens": 80, "temperature": 0.0}
    for kind in (OpenAIChatModel, OpenAIResponsesModel):
        model = kind(name, provider=provider)
        plain = await Agent(model, model_settings=settings).run("Hello")
        assert plain.usage.output_tokens > 0, plain
        for output in (City, NativeOutput(City)):
            agent = Agent(model, output_type=output, model_settings=settings)
            assert isinstance((await agent.run("A city?")).output, City), (kind, output)
        async with Agent(model, model_settings=settings).run_stream("Hello") as stream:
            async for _ in stream.stream_text():
                pass


asyncio.run(main())
