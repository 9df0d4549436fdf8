"""The Host header: a web page whose name was made to point here must not reach a local server."""

import ipaddress
from collections.abc import Sequence

_LOCAL = ("localhost", "127.0.0.1", "[::1]")


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine's own, which others cannot reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def allowed_hosts(bound: str, listed: Sequence[str]) -> tuple[str, ...]:
    """The hosts that requests may name, without ports; none means any.

    A loopback server is reached by loopback names alone, unless others are listed (a proxy may
    pass its own name on). One that others reach has names that it does not know: it is checked
    where names are listed.
    """
    if not listed and not is_loopback(bound):
        return ()
    address = f"[{bound}]" if ":" in bound else bound
    return tuple(dict.fromkeys((*_LOCAL, *(name.lower() for name in (address, *listed)))))


def host_refusal(given: str | None, allowed: Sequence[str]) -> str | None:
    """Why a request with this Host header is refused, or None.

    HTTP/1.0 has no Host, and no browser speaks it.
    """
    if not allowed or given is None or _name(given) in allowed:
        return None
    return (
        f"The Host header must be one of {', '.join(allowed)}, got {given[:80]!r}. Start the "
        "server with --allowed-host to allow another one."
    )


def _name(host: str) -> str:
    """A host in lower case, without its port and the root's dot."""
    name, colon, port = host.lower().rpartition(":")
    if not colon or not (port.isdecimal() or not port):
        name = host.lower()
    return name.removesuffix(".")
