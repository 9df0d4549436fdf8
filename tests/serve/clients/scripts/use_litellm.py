# requires: litellm==1.110.2
"""LiteLLM: answers whole and streamed, tools, and an error with the field's name."""

import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import litellm

url, model = sys.argv[1:]
options = {
    "model": f"openai/{model}",
    "api_base": url,
    "api_key": "x",
    "temperature": 0,
    "max_tokens": 60,
    "num_retries": 0,
}
hello = [{"role": "user", "content": "Hello"}]
parameters = {"type": "object", "properties": {"city": {"enum": ["Rome"]}}, "required": ["city"]}
tools = [{"type": "function", "function": {"name": "get_weather", "parameters": parameters}}]

answer = litellm.completion(messages=hello, **options)
text = answer.choices[0].message.content
pieces = litellm.completion(messages=hello, stream=True, **options)
assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == text
asked = litellm.completion(messages=hello, tools=tools, tool_choice="required", **options)
message = asked.choices[0].message
results = [
    {"role": "tool", "tool_call_id": call.id, "name": call.function.name, "content": "21"}
    for call in message.tool_calls
]
turns = [*hello, message.model_dump(), *results]
assert litellm.completion(messages=turns, tools=tools, **options).choices[0].finish_reason
try:
    litellm.completion(messages=hello, **options, presence_penalty=9)
except litellm.BadRequestError as error:
    assert "presence_penalty" in str(error), error
else:
    raise SystemExit("presence_penalty of 9 was taken")
