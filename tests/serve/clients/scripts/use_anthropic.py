# requires: anthropic==2.14.0
"""The anthropic package: answers whole and streamed, tools sent back, schemas, tokens, errors."""

import sys
from typing import Literal

import anthropic
from anthropic import Anthropic
from pydantic import BaseModel

url, model = sys.argv[1:]


class City(BaseModel):
    name: Literal["Rome", "Bern"]


client = Anthropic(base_url=url.removesuffix("/v1"), api_key="x", max_retries=0)
turns = [{"role": "user", "content": "Weather?"}]
options = {"model": model, "max_tokens": 60, "system": "Be brief."}
options["extra_body"] = {"temperature": 0}  # the package knows no temperature

answer = client.messages.create(messages=turns, **options)
with client.messages.stream(messages=turns, **options) as stream:
    text = "".join(stream.text_stream)
    final = stream.get_final_message()
assert text == "".join(block.text for block in answer.content)
assert final.stop_reason == answer.stop_reason == "max_tokens"
assert final.usage.output_tokens == answer.usage.output_tokens > 0
counted = client.messages.count_tokens(model=model, messages=turns, system="Be brief.")
total = final.usage.input_tokens + final.usage.cache_read_input_tokens
assert counted.input_tokens == total, (counted, final.usage)

schema = {**City.model_json_schema(), "additionalProperties": False}
tools = [{"name": "get_weather", "description": "Of a city.", "input_schema": schema}]
choice = {"type": "any", "disable_parallel_tool_use": True}
with client.messages.stream(messages=turns, tools=tools, tool_choice=choice, **options) as stream:
    asked = stream.get_final_message()
(call,) = asked.content
assert asked.stop_reason == "tool_use" and City.model_validate(call.input)
result = {"type": "tool_result", "tool_use_id": call.id, "content": "21", "is_error": False}
turns += [asked, {"role": "user", "content": [result]}]
turns[1] = {"role": "assistant", "content": asked.content}
assert client.messages.create(messages=turns, tools=tools, **options).usage.output_tokens > 0

parsed = client.messages.parse(messages=turns[:1], output_format=City, **options)
assert isinstance(parsed.parsed_output, City)
try:
    client.messages.create(messages=turns[:1], **(options | {"extra_body": {"temperature": 9}}))
except anthropic.BadRequestError as error:
    assert "temperature must be" in str(error), error
else:
    raise SystemExit("a temperature of 9 was taken")
