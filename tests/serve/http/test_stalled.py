"""A client that reads its answer slowly, and then all of it."""

from typing import Any

import pytest

from nemo_trt.serve.http.connections import GuardedProtocol
from tests.waiting import until

from .test_connections import ASK, Application, answered, opened, serving

pytestmark = pytest.mark.unit
__all__ = ["opened"]  # the fixture


def test_a_client_that_reads_again_has_no_deadline_any_more(
    opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[GuardedProtocol] = []
    true = GuardedProtocol.connection_made

    def connection_made(protocol: GuardedProtocol, transport: Any) -> None:
        made.append(protocol)
        true(protocol, transport)

    monkeypatch.setattr(GuardedProtocol, "connection_made", connection_made)
    with serving(Application()) as address:
        one = opened(address, ASK % b"flood")
        until(lambda: made and made[0]._stalled is not None)
        tail = b""
        while not tail.endswith(b"0\r\n\r\n"):
            tail = (tail + one.recv(2**20))[-5:]
        one.sendall(ASK % b"")
        assert answered(one) == b"HTTP/1.1 200 OK"
        assert made[0]._stalled is None
