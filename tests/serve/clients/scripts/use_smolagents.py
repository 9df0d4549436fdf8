# requires: smolagents[openai]==1.26.0
"""smolagents: its model, whole and streamed, with a tool that must be called."""

import sys

from smolagents import OpenAIServerModel, tool

url, name = sys.argv[1:]


@tool
def get_weather(city: str) -> str:
    """Weather of a city.

    Args:
        city: its name.
    """
    return f"21 degrees in {city}"


model = OpenAIServerModel(name, api_base=url, api_key="x", max_tokens=60, temperature=0)
turns = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
answer = model.generate(turns)
assert answer.token_usage.output_tokens > 0
assert "".join(piece.content or "" for piece in model.generate_stream(turns)) == answer.content
asked = model.generate(turns, tools_to_call_from=[get_weather])
assert asked.tool_calls[0].function.name == "get_weather", asked
