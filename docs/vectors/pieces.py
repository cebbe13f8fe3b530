#!/usr/bin/env python3
"""Identities, fragments and data packets, made and checked from docs/protocol.md alone (sections 2, 4.1 and 9).

Without an argument it recomputes pieces.json and exits non-zero on any difference; `write` rewrites the file. Needs
`cryptography` and `kyber-py`. The Rust side is tests/tests/vectors.rs.
"""
import base64
import hashlib
import json
import pathlib
import struct
import sys

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from kyber_py.ml_kem import ML_KEM_1024

FILE = pathlib.Path(__file__).with_name("pieces.json")


def octets(label, length):
    """Bytes that look random and are the same everywhere."""
    return hashlib.shake_256(b"qvpn example " + label.encode()).digest(length)


def identity(label):
    scalar, seed = octets(label + " x25519", 32), octets(label + " ml-kem", 64)
    public = X25519PrivateKey.from_private_bytes(scalar).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    ek, _ = ML_KEM_1024.key_derive(seed)
    public += hashlib.sha384(ek).digest()
    digest = hashlib.sha384(b"qvpn/1 fingerprint" + public).digest()[:15]
    bits = int.from_bytes(digest, "big")
    letters = ["abcdefghijkmnpqrstuvwxyz23456789"[bits >> (115 - 5 * i) & 31] for i in range(24)]
    return {
        "secret": "qvpn1-secret-" + base64.b64encode(scalar + seed).decode(),
        "public": "qvpn1-" + base64.b64encode(public).decode(),
        "fingerprint": "-".join("".join(letters[i:i + 4]) for i in range(0, 24, 4)),
    }


def fragments(kind, length):
    message_id, body = octets(f"id {kind}", 8), octets(f"message {kind}", length)
    pieces = [body[i:i + 1146] for i in range(0, length, 1146)] or [b""]
    packets = []
    for index, piece in enumerate(pieces):
        head = bytes([0x60, 0, 0, 0]) + struct.pack(">H", 14 + len(piece)) + bytes([253, 1])
        head += bytes([0xFE, 0x80] + [0] * 13 + [1]) + bytes([0xFE, 0x80] + [0] * 13 + [2])
        packets.append(head + message_id + bytes([kind, index, len(pieces), 0]) + struct.pack(">H", length) + piece)
    return {"type": kind, "id": message_id.hex(), "message": body.hex(), "packets": [p.hex() for p in packets]}


def data(suite, index, counter, length):
    key = octets(f"data key {suite}", 32)
    inner = b""
    if length:
        inner = bytes([0x45, 0]) + struct.pack(">H", length) + octets("inner", length - 4)
    padded = inner + bytes(-length % 16)
    aead = (ChaCha20Poly1305, AESGCM)[suite](key)
    sealed = aead.encrypt(bytes(4) + struct.pack("<Q", counter), padded, b"")
    return {
        "suite": ("chacha20poly1305", "aes256gcm")[suite],
        "key": key.hex(),
        "receiver_index": index,
        "counter": counter,
        "inner": inner.hex(),
        "datagram": (struct.pack("<IIQ", 4, index, counter) + sealed).hex(),
    }


def main():
    made = {
        "about": "identities, fragments and data packets of qvpn protocol version 2; all keys here are examples",
        "identities": [identity(f"site {letter}") for letter in "abc"],
        "fragments": [fragments(kind, length) for kind, length in ((1, 1604), (6, 56), (8, 0), (4, 3441), (2, 1146))],
        "data": [data(suite, 0x80010000 + counter % 7, counter, length) for suite in (0, 1)
                 for counter, length in ((0, 0), (1, 20), (2, 33), (3, 1420), (2**32 - 1, 64), (2**63 + 5, 17))],
    }
    if sys.argv[1:] == ["write"]:
        FILE.write_text(json.dumps(made, indent=2) + "\n")
    kept = json.loads(FILE.read_text())
    for part in made:
        if made[part] != kept.get(part):
            sys.exit(f"pieces.json differs in `{part}`")
    print(f"{sum(len(part) for part in made.values() if isinstance(part, list))} pieces agree")


main()
