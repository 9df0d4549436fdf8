"""Keys that are none, of whatever kind, get a sentence."""

import base64

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from nemo_trt import signature
from nemo_trt.errors import RequestError

pytestmark = pytest.mark.unit
ED25519, UNKNOWN = bytes.fromhex("06032b6570"), bytes.fromhex("06032b6563")  # object identifiers


def pem(kind: str, der: bytes) -> bytes:
    return (
        f"-----BEGIN {kind} KEY-----\n".encode()
        + base64.encodebytes(der)
        + (f"-----END {kind} KEY-----\n".encode())
    )


def encoded(key: ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey) -> tuple[bytes, bytes]:
    """DER of a private key and of its public one."""
    private = key.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return private, public


def test_what_is_no_ed25519_key_is_refused() -> None:
    private, public = encoded(ed25519.Ed25519PrivateKey.generate())
    signature.require_private_key(pem("PRIVATE", private))
    other_private, other_public = encoded(rsa.generate_private_key(65537, 2048))
    for bad in (b"", b"x", private.replace(ED25519, UNKNOWN), other_private):
        with pytest.raises(RequestError, match="signing key must be"):
            signature.require_private_key(pem("PRIVATE", bad) if bad else bad)
    for bad in (b"", b"x", public.replace(ED25519, UNKNOWN), other_public):
        with pytest.raises(RequestError, match="verifying key must be"):
            signature.problem({}, pem("PUBLIC", bad) if bad else bad)
