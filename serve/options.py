"""How a server behaves, whatever the engine behind it."""

import hmac
import re
from dataclasses import dataclass
from pathlib import Path

from nemo_trt.errors import RequestError

_ORIGIN = re.compile(r"https?://[^/*\s]+")
_HOST = re.compile(r"[^/*\s:\[\]]+|\[[0-9a-fA-F:.%]+\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """Settings of one server.

    Attributes:
        model_name: what clients call the model; by default the bundle's folder name.
        api_keys: any one of them opens the API; none means that no key is asked for.
        max_body_bytes: of a request; more is answered with 413.
        max_queue: requests that may wait for a slot; more are answered with 429.
        prefill_tokens: prompt tokens a step, which bounds the gap between two tokens of others.
        request_timeout_s: time of a request, waiting included; then it ends with an error.
        allow_unvalidated: serve what has no passing verdict, and say so.
        verify_key: PEM file of the Ed25519 public key whose signature the verdict must bear.
        cors_origins: origins whose pages may use the API, "https://chat.example"; none by default.
        allowed_hosts: that the Host header may name, without ports; none means any.
        log_text: write prompts and answers to the log.
    """

    model_name: str | None = None
    api_keys: tuple[str, ...] = ()
    max_body_bytes: int = 4 * 2**20
    max_queue: int = 64
    prefill_tokens: int = 512
    request_timeout_s: float = 600.0
    allow_unvalidated: bool = False
    verify_key: Path | None = None
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    log_text: bool = False

    def __post_init__(self) -> None:
        for name in ("max_body_bytes", "max_queue", "prefill_tokens", "request_timeout_s"):
            if not getattr(self, name) > 0:
                raise RequestError(f"{name} must be above 0, got {getattr(self, name)}.")
        if not all(self.api_keys):
            raise RequestError("An API key must hold at least one character.")
        for origin in self.cors_origins:
            if not _ORIGIN.fullmatch(origin):
                raise RequestError(
                    f"cors_origins must be origins such as https://chat.example, got {origin!r}."
                )

        for host in self.allowed_hosts:
            if not _HOST.fullmatch(host):
                raise RequestError(
                    f"allowed_hosts must be names or addresses without a port, got {host!r}."
                )

    def __repr__(self) -> str:
        """Without the keys: this may end in a log."""
        return f"ServeOptions(model_name={self.model_name!r}, {len(self.api_keys)} api keys, ...)"

    def opens(self, key: str) -> bool:
        """Whether a key opens the API; the time does not tell how much of it is right."""
        given = key.encode()
        found = False
        for known in self.api_keys:
            found |= hmac.compare_digest(known.encode(), given)
        return found
