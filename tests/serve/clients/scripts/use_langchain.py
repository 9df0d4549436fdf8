# requires: langchain==1.5.2 langchain-openai==1.7.4
"""LangChain: answers whole and streamed, tools, structured output, the Responses route."""

import sys
from typing import Literal

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, ConfigDict

url, model = sys.argv[1:]


@tool
def get_weather(city: Literal["Rome", "Bern"]) -> str:
    """Weather of a city."""
    return f"21 degrees in {city}"


class Verdict(BaseModel):
    model_config = ConfigDict(extra="forbid")

    good: bool
    score: Literal[1, 2, 3]


server = {"base_url": url, "api_key": "x", "model": model, "max_retries": 0}
chat = ChatOpenAI(**server, max_tokens=60, temperature=0)
answer = chat.invoke("Hello")
assert answer.usage_metadata["output_tokens"] > 0, answer
assert "".join(str(piece.content) for piece in chat.stream("Hello")) == answer.content
turns = [HumanMessage("Weather?")]
few = {"parallel_tool_calls": False}  # the sample model is noise, and would call for ever
asked = chat.bind_tools([get_weather], tool_choice="required", strict=True, **few).invoke(turns)
assert asked.tool_calls, asked
turns.append(asked)
turns += [
    ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])
    for call in asked.tool_calls
]
assert chat.bind_tools([get_weather]).invoke(turns).response_metadata["finish_reason"]
for method in ("json_schema", "function_calling"):
    found = chat.with_structured_output(Verdict, method=method).invoke("Judge.")
    assert isinstance(found, Verdict), found
responses = ChatOpenAI(**server, max_tokens=40, use_responses_api=True)
assert responses.invoke("Hello").usage_metadata["output_tokens"] > 0
assert list(responses.stream("Hello"))
