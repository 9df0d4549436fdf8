# requires: llama-index-llms-openai-like==0.8.1
"""LlamaIndex: answers whole and streamed, plain completions, and a tool."""

import sys
from typing import Literal

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

url, name = sys.argv[1:]


def get_weather(city: Literal["Rome", "Bern"]) -> str:
    """Weather of a city."""
    return "21 degrees"


options = {"api_base": url, "api_key": "x", "max_tokens": 60, "max_retries": 0, "temperature": 0}
chat = OpenAILike(model=name, is_chat_model=True, is_function_calling_model=True, **options)
turns = [ChatMessage(role="user", content="Hello")]
answer = chat.chat(turns)
assert list(chat.stream_chat(turns))[-1].message.content == answer.message.content
tools = [FunctionTool.from_defaults(get_weather)]
asked = chat.chat_with_tools(tools, user_msg="Weather?", tool_required=True)
calls = chat.get_tool_calls_from_response(asked)
assert calls[0].tool_kwargs["city"] in ("Rome", "Bern"), calls
result = ChatMessage(
    role="tool", content="21", additional_kwargs={"tool_call_id": calls[0].tool_id}
)
assert chat.chat([*turns, asked.message, result]) is not None
assert OpenAILike(model=name, is_chat_model=False, **options).complete("Once").text is not None
