"""Campanile's seals once more, in another language and on another library than idl/src/seal.rs: what opens here was sealed
as docs say, not as one implementation happens to do it."""

import hashlib
import hmac

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

NONCE_BYTES = 12
SIGNATURE_BYTES = 64
NO_MESSAGE = bytes(16)

__all__ = [
    "InvalidSignature",
    "InvalidTag",
    "agree_as_device",
    "open_broadcast",
    "open_keys",
    "open_single",
    "public_of",
    "registration_proof",
    "seal_broadcast",
    "seal_keys",
    "seal_single",
]


def public_of(secret: bytes) -> bytes:
    """The public half of an X25519 key."""
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def agree_as_device(secret: bytes, server_public: bytes, app_key: str) -> bytes:
    """A registration's seal key: X25519, mixed with the app key."""
    shared = X25519PrivateKey.from_private_bytes(secret).exchange(X25519PublicKey.from_public_bytes(server_public))
    info = b"campanile seal 1" + public_of(secret) + server_public
    return HKDF(SHA256(), length=32, salt=app_key.encode(), info=info).derive(shared)


def registration_proof(app_key: str, account: str, app: str, public_key: bytes) -> bytes:
    """Shows that who registers holds the app key."""
    parts = [b"campanile register 1", account.encode(), app.encode(), public_key]
    text = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return hmac.new(app_key.encode(), text, hashlib.sha256).digest()


def seal_single(key: bytes, app: str, message: bytes, plaintext: bytes) -> bytes:
    return AESGCM(key).encrypt(_nonce(message), plaintext, _context(b"campanile single 1", app, message))


def open_single(key: bytes, app: str, message: bytes, sealed: bytes) -> bytes:
    """Opens a delivery for one registration; raises InvalidTag."""
    return AESGCM(key).decrypt(_nonce(message), sealed, _context(b"campanile single 1", app, message))


def seal_keys(key: bytes, app: str, nonce: bytes, plaintext: bytes) -> bytes:
    return nonce + AESGCM(key).encrypt(nonce, plaintext, _context(b"campanile keys 1", app, NO_MESSAGE))


def open_keys(key: bytes, app: str, sealed: bytes) -> bytes:
    """Opens the app's keys as a registration got them; raises InvalidTag."""
    nonce, sealed = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
    return AESGCM(key).decrypt(nonce, sealed, _context(b"campanile keys 1", app, NO_MESSAGE))


def seal_broadcast(key: bytes, signing_seed: bytes, app: str, message: bytes, plaintext: bytes) -> bytes:
    context = _context(b"campanile broadcast 1", app, message)
    sealed = AESGCM(key).encrypt(_nonce(message), plaintext, context)
    return sealed + Ed25519PrivateKey.from_private_bytes(signing_seed).sign(context + sealed)


def open_broadcast(key: bytes, verify_key: bytes, app: str, message: bytes, sealed: bytes) -> bytes:
    """Checks a broadcast's signature and opens it; raises InvalidSignature or InvalidTag."""
    context = _context(b"campanile broadcast 1", app, message)
    sealed, signature = sealed[:-SIGNATURE_BYTES], sealed[-SIGNATURE_BYTES:]
    Ed25519PublicKey.from_public_bytes(verify_key).verify(signature, context + sealed)
    return AESGCM(key).decrypt(_nonce(message), sealed, context)


def _nonce(message: bytes) -> bytes:
    return message[-NONCE_BYTES:]


def _context(purpose: bytes, app: str, message: bytes) -> bytes:
    return b"\0".join([purpose, app.encode(), message])
