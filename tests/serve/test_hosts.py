"""Which Host headers a server answers to."""

import pytest
from starlette.testclient import TestClient

from nemo_trt.errors import RequestError
from nemo_trt.serve import ServeOptions
from nemo_trt.serve.hosts import allowed_hosts, host_refusal, is_loopback
from nemo_trt.serve.http.middleware import RequestMiddleware
from nemo_trt.serve.metrics import Metrics

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("bound", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        *((name, True) for name in ("localhost", "LOCALHOST:8000", "127.0.0.1:1", "localhost.")),
        *((name, True) for name in ("[::1]", "[::1]:8000", None)),
        *(
            (name, False)
            for name in ("evil.example", "evil.example:8000", "localhost.evil.example")
        ),
        *((name, False) for name in ("", "127.0.0.1.evil.example", "localhost:80:80", "[::1")),
    ],
)
def test_a_loopback_server_answers_to_loopback_names(
    bound: str, host: str | None, allowed: bool
) -> None:
    refusal = host_refusal(host, allowed_hosts(bound, ()))
    assert (refusal is None) == allowed
    assert allowed or ("--allowed-host" in str(refusal) and "localhost" in str(refusal))


def test_the_address_that_was_bound_and_listed_names_are_allowed() -> None:
    hosts = allowed_hosts("10.1.2.3", ["Chat.Example"])
    for host in ("10.1.2.3:8000", "chat.example", "127.0.0.1"):
        assert host_refusal(host, hosts) is None
    assert host_refusal("other.example", hosts)
    assert host_refusal("[fe80::1]:80", allowed_hosts("fe80::1", ["x"])) is None
    assert host_refusal("127.0.0.2", allowed_hosts("127.0.0.2", ())) is None


@pytest.mark.parametrize("bound", ["0.0.0.0", "::", "10.1.2.3", "gpu-box"])
def test_a_server_that_others_reach_answers_to_any_name_unless_some_are_listed(bound: str) -> None:
    assert not is_loopback(bound)
    assert host_refusal("anything.example", allowed_hosts(bound, ())) is None
    assert host_refusal("anything.example", allowed_hosts(bound, ["chat.example"]))


@pytest.mark.parametrize("wrong", ["http://x", "x:80", "*", "", "[::1]:80", "a b"])
def test_a_listed_host_is_a_name_without_a_port(wrong: str) -> None:
    with pytest.raises(RequestError, match="allowed_hosts"):
        ServeOptions(allowed_hosts=(wrong,))


def test_no_path_answers_to_another_host() -> None:
    reached = []

    async def app(scope: object, receive: object, send: object) -> None:
        reached.append(scope)

    options = ServeOptions(allowed_hosts=allowed_hosts("127.0.0.1", ()))
    client = TestClient(
        RequestMiddleware(app, options, Metrics()), base_url="http://evil.example:8000"
    )
    for path in ("/", "/metrics", "/health/live", "/v1/models"):
        answer = client.get(path)
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "host_not_allowed"
    assert not reached
