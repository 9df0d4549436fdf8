# requires: openai-agents==0.24.0
"""OpenAI Agents: a run with typed output and one that must call a tool, by both APIs."""

import asyncio
import sys
from typing import Literal

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from pydantic import BaseModel

url, name = sys.argv[1:]
called = []


class City(BaseModel):
    name: Literal["Rome", "Bern"]


@function_tool
def get_weather(city: Literal["Rome", "Bern"]) -> str:
    """Weather of a city."""
    called.append(city)
    return "21 degrees"


async def main() -> None:
    set_tracing_disabled(True)
    client = AsyncOpenAI(base_url=url, api_key="x", max_retries=0)
    settings = ModelSettings(max_tokens=400, temperature=0)
    for kind in (OpenAIChatCompletionsModel, OpenAIResponsesModel):
        model = kind(name, client)
        typed = Agent(name="a", model=model, output_type=City, model_settings=settings)
        assert isinstance((await Runner.run(typed, "A city?")).final_output, City), kind
        required = ModelSettings(max_tokens=400, tool_choice="required", parallel_tool_calls=False)
        agent = Agent(
            name="b",
            model=model,
            tools=[get_weather],
            model_settings=required,
            tool_use_behavior="stop_on_first_tool",  # the sample model is noise, and does not end
        )
        run = Runner.run_streamed(agent, "Weather?", max_turns=4)
        async for _ in run.stream_events():
            pass
        assert called and run.final_output is not None, kind
        called.clear()


asyncio.run(main())
