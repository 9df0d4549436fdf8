# requires: openai==3.57.0
"""The openai package: its stream helper, tools sent back, parsed answers, Responses."""

import sys
from typing import Literal

import openai
from openai import OpenAI
from pydantic import BaseModel

url, model = sys.argv[1:]


class City(BaseModel):
    name: Literal["Rome", "Bern"]


client = OpenAI(base_url=url, api_key="x", max_retries=0)
assert [found.id for found in client.models.list()] == [model]
turns = [{"role": "user", "content": "Weather?"}]
tool = openai.pydantic_function_tool(City, name="get_weather")
with client.chat.completions.stream(
    model=model, messages=turns, tools=[tool], tool_choice="required", parallel_tool_calls=False
) as stream:
    message = stream.get_final_completion().choices[0].message
assert isinstance(message.tool_calls[0].function.parsed_arguments, City)
turns += [message, {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "21"}]
answer = client.chat.completions.create(model=model, messages=turns, tools=[tool], max_tokens=9)
assert answer.choices[0].finish_reason
parsed = client.chat.completions.parse(model=model, messages=turns[:1], response_format=City)
assert isinstance(parsed.choices[0].message.parsed, City)
typed = client.responses.parse(model=model, input="A city?", text_format=City)
assert isinstance(typed.output_parsed, City)
