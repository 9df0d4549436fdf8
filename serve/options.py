"""Server settings that do not depend on the engine."""

import hmac
import re
from dataclasses import dataclass
from pathlib import Path

from nemo_trt.errors import RequestError

_ORIGIN = re.compile(r"https?://[^/*\s]+")
_HOST = re.compile(r"[^/*\s:\[\]]+|\[[0-9a-fA-F:.%]+\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """Settings of a server.

    Attributes:
        model_name: the model's name in the API; by default the checkpoint's name.
        api_keys: accepted API keys; if empty, no key is required.
        max_body_bytes: largest request body; a larger one is answered with 413. The default holds
            twice what a context of 128k tokens takes as a list of tokens or as text.
        max_queue: maximum number of requests waiting for a slot; further ones get 429.
        prefill_tokens: most prompt tokens per step; bounds the delay of other requests' tokens.
        request_timeout_s: maximum seconds per request, including its wait; then it fails.
        allow_unvalidated: also serve a bundle or engine without a passing verdict, with a warning.
        verify_key: PEM file of an Ed25519 public key; the verdict must be signed with its private
            key.
        cors_origins: origins whose pages may call the API, such as "https://chat.example".
        allowed_hosts: accepted names in the Host header, without ports; if empty, any.
        log_text: also log prompts and answers.
    """

    model_name: str | None = None
    api_keys: tuple[str, ...] = ()
    max_body_bytes: int = 2 * 2**20
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
        """Whether the API accepts a key; keys are compared in constant time."""
        given = key.encode()
        found = False
        for known in self.api_keys:
            found |= hmac.compare_digest(known.encode(), given)
        return found
