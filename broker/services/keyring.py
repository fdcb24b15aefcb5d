"""
Sealing of records, and the names under which they are stored.

Records are sealed with XAES-256-GCM: AES-256-GCM under a key derived for each seal from a 192-bit random nonce. The
96-bit nonce of plain AES-GCM allows 2**32 random nonces under one key (NIST SP 800-38D section 8.3); a broker that
rewrites sessions for years would have to count them over all its replicas. With 192 bits nothing has to be counted.

Source: https://c2sp.org/XAES-256-GCM
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from broker.core.secret import Secret
from broker.errors import ConfigError, KeyringError
from broker.services.clock import Randomness, SystemRandomness

KEY_BYTES = 32
NONCE_BYTES = 24
_FORMAT = b"\x01"
_KEY_ID_BYTES = 4
_HEADER_BYTES = len(_FORMAT) + _KEY_ID_BYTES
_TAG_BYTES = 16
_BLOCK_BYTES = 64
_INNER_PAD = int.from_bytes(b"\x36" * _BLOCK_BYTES)
_OUTER_PAD = int.from_bytes(b"\x5c" * _BLOCK_BYTES)


def new_key(randomness: Randomness) -> Secret:
    """Return a new ring key: base64url of 32 random bytes."""
    return Secret(base64.urlsafe_b64encode(randomness.token_bytes(KEY_BYTES)).decode().rstrip("="))


def decode_key(key: Secret) -> bytes:
    """
    Return the 32 bytes of a ring key.

    Raises:
        ConfigError: If it isn't base64url of 32 bytes, or is too regular to be random.
    """
    text = key.reveal().strip()
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError("a key must be base64url of 32 random bytes; `token-broker keys new` makes one") from None
    if len(raw) != KEY_BYTES:
        raise ConfigError(f"a key must have 32 bytes, not {len(raw)}; `token-broker keys new` makes one")
    # Of 32 random bytes about 30 differ; fewer than 16 happens once in 10**17 keys.
    if len(set(raw)) < KEY_BYTES // 2:
        raise ConfigError("a key must be random; `token-broker keys new` makes one")
    return raw


class XAes256Gcm:
    """The AEAD of https://c2sp.org/XAES-256-GCM: AES-256-GCM with a 192-bit nonce."""

    __slots__ = ("_encrypt_blocks", "_mask")

    def __init__(self, key: bytes) -> None:
        # One block at a time is the PRF inside CMAC. ECB keeps no state between two calls, so one context does for all.
        self._encrypt_blocks = Cipher(algorithms.AES(key), modes.ECB()).encryptor().update  # noqa: S305
        subkey = self._cmac_subkey()
        self._mask = int.from_bytes(subkey + subkey)

    def _cmac_subkey(self) -> bytes:
        """K1 of CMAC (NIST SP 800-38B section 6.1)."""
        doubled = int.from_bytes(self._encrypt_blocks(bytes(16))) << 1
        if doubled >> 128:
            doubled = (doubled ^ 0x87) & ((1 << 128) - 1)
        return doubled.to_bytes(16)

    def _derive(self, nonce: bytes) -> AESGCM:
        """One AES-256 key per 96-bit nonce prefix, by CMAC in counter mode (NIST SP 800-108r1 section 4.1)."""
        prefix = nonce[:12]
        messages = int.from_bytes(b"\x00\x01X\x00" + prefix + b"\x00\x02X\x00" + prefix)
        return AESGCM(self._encrypt_blocks((messages ^ self._mask).to_bytes(32)))

    def encrypt(self, nonce: bytes, plaintext: bytes, aad: bytes) -> bytes:
        return self._derive(nonce).encrypt(nonce[12:], plaintext, aad)

    def decrypt(self, nonce: bytes, ciphertext: bytes, aad: bytes) -> bytes:
        """Raises ``cryptography.exceptions.InvalidTag`` if anything was altered."""
        return self._derive(nonce).decrypt(nonce[12:], ciphertext, aad)


class _Hmac:
    """HMAC-SHA-256 (RFC 2104) under one key, whose two blocks are hashed once: half the work for a short message."""

    __slots__ = ("_inner", "_outer")

    def __init__(self, key: bytes) -> None:
        block = int.from_bytes(key.ljust(_BLOCK_BYTES, b"\x00"))
        self._inner = hashlib.sha256((block ^ _INNER_PAD).to_bytes(_BLOCK_BYTES))
        self._outer = hashlib.sha256((block ^ _OUTER_PAD).to_bytes(_BLOCK_BYTES))

    def hexdigest(self, message: bytes) -> str:
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(message)
        outer.update(inner.digest())
        return outer.hexdigest()


class _RingKey:
    """What one configured key is used for, each use with a key of its own."""

    __slots__ = ("aead", "id", "lookup")

    def __init__(self, key: bytes) -> None:
        self.id = _subkey(key, b"key id")[:_KEY_ID_BYTES]
        self.aead = XAes256Gcm(_subkey(key, b"seal"))
        self.lookup = _Hmac(_subkey(key, b"lookup"))


def _subkey(key: bytes, purpose: bytes) -> bytes:
    return hmac.digest(key, b"token-broker/1/" + purpose, hashlib.sha256)


def _associated_data(kind: str, name: str) -> bytes:
    return _FORMAT + kind.encode() + b"\x00" + name.encode()


class Keyring:
    """
    The keys of an installation: the first seals, all open.

    To rotate: put a new key in front on every replica, wait until no record that the old one sealed is left (the
    longest session), then remove the old one.
    """

    def __init__(self, keys: Sequence[Secret], randomness: Randomness | None = None) -> None:
        """
        Args:
            keys: Base64url of 32 random bytes each.
            randomness: Source of the nonces.

        Raises:
            ConfigError: If there is no key, or one is short, guessable or named twice.
        """
        self._randomness = randomness or SystemRandomness()
        ring = [_RingKey(decode_key(key)) for key in keys]
        if not ring:
            raise ConfigError("at least one key is needed; `token-broker keys new` makes one")
        self._ring = ring
        self._by_id = {key.id: key for key in ring}
        if len(self._by_id) != len(ring):
            raise ConfigError("the same key is named twice")

    def seal(self, kind: str, name: str, plaintext: bytes) -> bytes:
        """
        Seal *plaintext* so that only this *kind* and *name* opens it again.

        Args:
            kind: What it is: ``grant``, ``session`` …
            name: The store key of the record, or a fixed word for what isn't stored.
            plaintext: What is sealed.
        """
        key = self._ring[0]
        nonce = self._randomness.token_bytes(NONCE_BYTES)
        sealed = key.aead.encrypt(nonce, plaintext, _associated_data(kind, name))
        return _FORMAT + key.id + nonce + sealed

    def open(self, kind: str, name: str, sealed: bytes) -> bytes:
        """
        Return what :meth:`seal` sealed for this *kind* and *name*.

        Raises:
            KeyringError: If it was altered, cut, moved from another place, or sealed with a key that isn't here. The
                error doesn't say which: it would be an oracle.
        """
        key = self._by_id.get(sealed[1:_HEADER_BYTES])
        if sealed[:1] != _FORMAT or key is None or len(sealed) < _HEADER_BYTES + NONCE_BYTES + _TAG_BYTES:
            raise KeyringError
        nonce = sealed[_HEADER_BYTES : _HEADER_BYTES + NONCE_BYTES]
        try:
            return key.aead.decrypt(nonce, sealed[_HEADER_BYTES + NONCE_BYTES :], _associated_data(kind, name))
        except InvalidTag:
            raise KeyringError from None

    def lookup_keys(self, kind: str, name: str) -> tuple[str, ...]:
        """
        Return the store keys of the record *name*: HMACs, so that a dump of the store holds no usable name.

        Returns:
            One key per ring key, newest first. New records take the first; a record of an older ring key is found
            under a later one.
        """
        message = _associated_data(kind, name)
        return tuple([f"{kind}:{key.lookup.hexdigest(message)}" for key in self._ring])

    def needed_for(self, names: Sequence[str], name: str, sealed: bytes) -> tuple[int, ...]:
        """
        Return which keys a record depends on: the one that made its name, and the one that sealed it last.

        Args:
            names: What :meth:`lookup_keys` returns of it, or of a tag that it got with its name.
            name: The one of them under which it was found.
            sealed: The record.

        Returns:
            Their places in the configuration, counted from 1.
        """
        sealed_by = sealed[len(_FORMAT) : _HEADER_BYTES]
        made = zip(self._ring, names, strict=True)
        return tuple([at for at, (key, made_name) in enumerate(made, 1) if name == made_name or key.id == sealed_by])
