"""Ed25519 signatures of verdicts, by `cryptography`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from nemo_trt.errors import MachineError, RequestError

FIELD: Final = "signature"
_ALGORITHM = "ed25519"


def read_key(path: Path) -> bytes:
    """The bytes of a key file.

    Raises:
        RequestError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise RequestError(f"The key {path} cannot be read: {error.strerror}.") from error


def require_private_key(pem: bytes) -> None:
    """Check that a key can sign, before work is done whose result it is to sign.

    Raises:
        MachineError: `cryptography` is not installed.
        RequestError: it is no unencrypted Ed25519 private key in PEM.
    """
    _private(pem)


def sign(data: Mapping[str, Any], pem: bytes) -> dict[str, str]:
    """The signature of JSON data, to stand in it under `FIELD`."""
    key = _private(pem)
    public = key.public_key().public_bytes_raw().hex()
    return {"algorithm": _ALGORITHM, "public_key": public, "value": key.sign(_bytes(data)).hex()}


def problem(data: Mapping[str, Any], public_pem: bytes) -> str | None:
    """Why JSON data does not bear a key's signature; None when it does.

    Raises:
        MachineError: `cryptography` is not installed.
        RequestError: the key is no Ed25519 public key in PEM.
    """
    key = _public(public_pem)
    from cryptography.exceptions import InvalidSignature

    found = data.get(FIELD)
    if not isinstance(found, dict) or found.get("algorithm") != _ALGORITHM:
        return "it bears no Ed25519 signature"
    try:
        key.verify(bytes.fromhex(found["value"]), _bytes(data))
    except (KeyError, TypeError, ValueError):
        return "its signature is damaged"
    except InvalidSignature:
        return "its signature is not of this key and text"
    return None


def _bytes(data: Mapping[str, Any]) -> bytes:
    """What is signed: all but the signature, in one form of JSON."""
    rest = {name: value for name, value in data.items() if name != FIELD}
    return json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _private(pem: bytes) -> Any:
    serialization, ed25519 = _cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise RequestError(f"The signing key must be an unencrypted PEM file: {error}.") from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise RequestError(
            f"The signing key must be Ed25519, got {type(key).__name__}. Make one: openssl genpkey "
            "-algorithm ed25519 -out key.pem."
        )
    return key


def _public(pem: bytes) -> Any:
    serialization, ed25519 = _cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise RequestError(f"The verifying key must be a PEM public key: {error}.") from error
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise RequestError(
            f"The verifying key must be Ed25519, got {type(key).__name__}. Take it from the "
            "signing key: openssl pkey -in key.pem -pubout -out key.pub."
        )
    return key


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise MachineError("Signatures need cryptography: pip install 'nemo-trt[sign]'.") from error
    return serialization, ed25519
