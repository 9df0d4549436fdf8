# requires: autogen-agentchat==0.7.5 autogen-ext[openai]==0.7.5
"""AutoGen: its model client and an agent with a tool."""

import asyncio
import sys

from autogen_agentchat.agents import AssistantAgent
from autogen_core.models import ModelInfo, UserMessage
from autogen_ext.models.openai import OpenAIChatCompletionClient

url, name = sys.argv[1:]
INFO = ModelInfo(
    vision=False,
    function_calling=True,
    json_output=True,
    family="unknown",
    structured_output=True,
    multiple_system_messages=True,
)


async def get_weather(city: str) -> str:
    """Weather of a city."""
    return "21 degrees"


async def main() -> None:
    client = OpenAIChatCompletionClient(
        model=name, base_url=url, api_key="x", model_info=INFO, max_tokens=60, max_retries=0
    )
    turns = [UserMessage(content="Hello", source="user")]
    assert (await client.create(turns)).usage.completion_tokens > 0
    pieces = [piece async for piece in client.create_stream(turns)]
    assert pieces[-1].usage is not None
    agent = AssistantAgent("a", model_client=client, tools=[get_weather], model_client_stream=True)
    assert (await agent.run(task="Weather?")).messages


asyncio.run(main())
