#!/usr/bin/env python3
"""Prints idl/tests/seal_vectors.json: what Campanile's seals make of fixed inputs. Bytes are in hexadecimal."""

import json

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import seal

APP = "com.example.demo"
ACCOUNT = "01hf7yat00000000000000000m"
APP_KEY = "an app key, ünïcode too"
MESSAGE = bytes.fromhex("01923456789abcdef0123456789abcde")


def pattern(first: int, length: int = 32) -> bytes:
    return bytes((first + step * 7) % 256 for step in range(length))


def main() -> None:
    device_secret, server_secret = pattern(1), pattern(101)
    server_public = seal.public_of(server_secret)
    key = seal.agree_as_device(device_secret, server_public, APP_KEY)
    device_public = seal.public_of(device_secret)
    broadcast_key, signing_seed, nonce = pattern(33), pattern(66), pattern(200, seal.NONCE_BYTES)
    verify_key = Ed25519PrivateKey.from_private_bytes(signing_seed).public_key().public_bytes_raw()
    cases = []
    for plaintext in [b"", b"hello", "你好".encode(), pattern(9, 300)]:
        cases.append(
            {
                "plaintext": plaintext.hex(),
                "single": seal.seal_single(key, APP, MESSAGE, plaintext).hex(),
                "keys": seal.seal_keys(key, APP, nonce, plaintext).hex(),
                "broadcast": seal.seal_broadcast(broadcast_key, signing_seed, APP, MESSAGE, plaintext).hex(),
            }
        )
    vectors = {
        "app": APP,
        "account": ACCOUNT,
        "app_key": APP_KEY,
        "message": MESSAGE.hex(),
        "device_secret": device_secret.hex(),
        "device_public": device_public.hex(),
        "server_secret": server_secret.hex(),
        "server_public": server_public.hex(),
        "seal_key": key.hex(),
        "proof": seal.registration_proof(APP_KEY, ACCOUNT, APP, device_public).hex(),
        "keys_nonce": nonce.hex(),
        "broadcast_key": broadcast_key.hex(),
        "signing_seed": signing_seed.hex(),
        "verify_key": verify_key.hex(),
        "cases": cases,
    }
    print(json.dumps(vectors, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
