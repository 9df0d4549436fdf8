"""Scores of prompts over HTTP: in each place as many alternatives as were asked for there."""

from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.model

PROMPT = "Water boils at a hundred degrees"
CHAT = {"messages": [{"role": "user", "content": "Weather?"}], "max_tokens": 1}


def post(server: Any, path: str, body: dict[str, Any]) -> Any:
    answer = httpx.post(f"{server.url}/v1/{path}", json=body, timeout=300)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_chat_that_runs_when_the_server_begins_to_drain_has_its_scores(
    tekken: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = tekken.app.state.service
    accepting = service.engine.generate

    def drains(*arguments: Any, **options: Any) -> Any:
        service.lifetime._draining = True
        return accepting(*arguments, **options)

    monkeypatch.setattr(service.lifetime, "_draining", False)  # and set back
    monkeypatch.setattr(service.engine, "generate", drains)
    found = post(tekken, "chat/completions", CHAT | {"prompt_logprobs": 1})
    assert service.state == "draining"
    entries = found["prompt_logprobs"]
    assert len(entries) == found["usage"]["prompt_tokens"] and entries[0] is None
    assert all(entry for entry in entries[1:])
