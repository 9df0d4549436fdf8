# requires: instructor==1.17.0
"""Instructor: an object of a Pydantic model, by tools and by JSON schema."""

import sys
from typing import Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel, ConfigDict

url, model = sys.argv[1:]


class City(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Literal["Rome", "Bern"]
    large: bool


for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS_STRICT):
    client = instructor.from_openai(OpenAI(base_url=url, api_key="x", max_retries=0), mode=mode)
    city = client.chat.completions.create(
        model=model,
        response_model=City,
        messages=[{"role": "user", "content": "A city?"}],
        max_tokens=400,
        max_retries=1,
    )
    assert isinstance(city, City), (mode, city)
