#!/usr/bin/env python3
"""Recomputes exchange.json from docs/protocol.md alone: no code is shared with the Rust crates.

Needs the packages `cryptography` (X25519, HKDF) and `kyber-py` (ML-KEM-1024). Exits non-zero on any difference.
"""
import base64
import hashlib
import hmac
import json
import pathlib
import struct
import sys

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from kyber_py.ml_kem import ML_KEM_1024

checked = 0


def same(what, got, want):
    global checked
    checked += 1
    if got != want:
        sys.exit(f"{what} differs:\n  computed {got if isinstance(got, str) else got.hex()}\n  vector   "
                 f"{want if isinstance(want, str) else want.hex()}")


def lp(part):
    return struct.pack(">I", len(part)) + part


def expand(prk, info, length):
    return HKDFExpand(hashes.SHA384(), length, info).derive(prk)


def extract(salt, ikm):
    return hmac.new(salt, ikm, hashlib.sha384).digest()


def raw(private):
    return private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def dh(secret, public):
    return X25519PrivateKey.from_private_bytes(secret).exchange(X25519PublicKey.from_public_bytes(public))


def name(text):
    return bytes([len(text)]) + text.encode()


def key_name(text):
    return struct.pack(">H", len(text)) + text.encode()


class Identity:
    def __init__(self, entry, who):
        self.x25519 = bytes.fromhex(entry["x25519"])
        self.ek, self.dk = ML_KEM_1024.key_derive(bytes.fromhex(entry["mlkem_seed"]))
        public = raw(X25519PrivateKey.from_private_bytes(self.x25519))
        self.public = public + hashlib.sha384(self.ek).digest()
        same(f"public identity of the {who}", "qvpn1-" + base64.b64encode(self.public).decode(), entry["public"])


def hello(identity, instance, role, case, names, psk):
    out = bytes([2]) + bytes([instance]) * 16 + struct.pack(">Q", 1)
    out += bytes([role, case["suite"], case["lanes"], 2]) + struct.pack(">II", 60_000, 6_000)
    out += name(names[0]) + name(names[1])
    if psk:
        prk = extract(bytes(48), psk)
        out += b"\x01" + expand(prk, b"qvpn/2 psk check" + bytes([instance]) * 16, 16)
    else:
        out += b"\x00"
    return out + identity.ek


def indices(numbers):
    return bytes([len(numbers)]) + b"".join(struct.pack(">I", n) for n in numbers)


def exchange(case, initiator, responder, chain):
    psk = bytes.fromhex(case["psk"] or "")
    qkd = bytes.fromhex(case["qkd_key"] or "")
    key_id = case["qkd_key_id"] or ""
    chain = chain if case["uses_chain"] else None
    hello_i = hello(initiator, 0xA1, 0, case, ("SITE-A", "SITE-B"), psk)
    hello_r = hello(responder, 0xB2, 1, case, ("SITE-B", "SITE-A"), psk)
    same("Hello of the initiator", hello_i, bytes.fromhex(case["hello_initiator"]))
    same("Hello of the responder", hello_r, bytes.fromhex(case["hello_responder"]))
    if qkd:
        prk = extract(bytes(48), qkd)
        same("QKD check", expand(prk, b"qvpn/2 qkd check" + lp(key_id.encode()), 16).hex(), case["qkd_check"])

    # Propose: ephemeral X25519 scalar, ephemeral ML-KEM seed, randomness of the ciphertext to the responder.
    random = bytes.fromhex(case["initiator_random"])
    x_i, seed, m_r = random[:32], random[32:96], random[96:128]
    same("randomness of the initiator", random[128:], b"")
    ek, dk = ML_KEM_1024.key_derive(seed)
    to_responder, ct_r = ML_KEM_1024._encaps_internal(responder.ek, m_r)
    propose = hashlib.sha384(hello_i).digest() + hashlib.sha384(hello_r).digest()
    propose += struct.pack(">Q", case["epoch"]) + raw(X25519PrivateKey.from_private_bytes(x_i)) + ek + ct_r
    propose += indices(case["initiator_indices"]) + key_name(key_id)
    propose += b"\x01" + chain["check"] if chain else b"\x00"
    same("Propose", propose, bytes.fromhex(case["propose"]))

    # Accept: ephemeral X25519 scalar, randomness of the ciphertexts to the ephemeral and to the static key.
    random = bytes.fromhex(case["responder_random"])
    x_r, m_e, m_i = random[:32], random[32:64], random[64:96]
    same("randomness of the responder", random[96:], b"")
    ephemeral, ct_e = ML_KEM_1024._encaps_internal(ek, m_e)
    to_initiator, ct_i = ML_KEM_1024._encaps_internal(initiator.ek, m_i)
    accept = struct.pack(">Q", case["epoch"]) + raw(X25519PrivateKey.from_private_bytes(x_r)) + ct_e + ct_i
    accept += indices(case["responder_indices"])
    same("shared secret to the ephemeral key", ML_KEM_1024.decaps(dk, ct_e), ephemeral)
    same("shared secret to the initiator", ML_KEM_1024.decaps(initiator.dk, ct_i), to_initiator)

    th = hashlib.sha384(b"qvpn/2 epoch" + b"".join(
        lp(part) for part in (initiator.public, responder.public, hello_i, hello_r, propose, accept))).digest()
    x25519 = dh(x_i, raw(X25519PrivateKey.from_private_bytes(x_r)))
    ikm = b"".join(lp(part) for part in (
        ephemeral, to_responder, to_initiator, x25519, qkd, psk, chain["secret"] if chain else b""))
    prk = extract(th, ikm)

    def out(label, context, length):
        return expand(prk, b"qvpn/2 " + label + b"\x00" + context, length)

    def mac(label, data, length):
        return hmac.new(out(label, b"", 48), data, hashlib.sha384).digest()[:length]

    keys = case["keys"]
    parties = lp(initiator.public), lp(responder.public)
    confirm_r = mac(b"confirm key responder", b"KC_2_V" + parties[1] + parties[0] + th, 48)
    confirm_i = mac(b"confirm key initiator", b"KC_2_U" + parties[0] + parties[1] + th, 48)
    same("confirmation of the responder", confirm_r.hex(), keys["confirm_responder"])
    same("confirmation of the initiator", confirm_i.hex(), keys["confirm_initiator"])
    same("Accept", accept + confirm_r, bytes.fromhex(case["accept"]))
    for direction, field in ((0, "to_responder"), (1, "to_initiator")):
        for lane in range(case["lanes"]):
            key = out(b"data", bytes([case["suite"], direction, lane]), 32)
            same(f"data key {field} of lane {lane}", key.hex(), keys[field][lane])
    next_chain = {"secret": out(b"chain", b"", 48), "check": mac(b"chain check key", th, 16)}
    same("chain check", next_chain["check"].hex(), keys["chain_check"])
    return next_chain


def main():
    vector = json.loads(pathlib.Path(__file__).with_name("exchange.json").read_text())
    initiator = Identity(vector["initiator"], "initiator")
    responder = Identity(vector["responder"], "responder")
    chain = None
    for case in vector["exchanges"]:
        chain = exchange(case, initiator, responder, chain)
    print(f"{len(vector['exchanges'])} exchanges, {checked} values agree")


main()
