"""Signatures: who vouches for a bundle (extra `signing`).

`manifest.sig` beside the manifest is the Ed25519 signature of the manifest's digest, in base64. The manifest has the
digests of all other files, so one signature covers the whole bundle. The manifest does not list `manifest.sig`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from router.bundle.manifest import Manifest
from router.errors import KeyFileError, SignatureError
from router.extras import install_command
from router.files import read_bounded, replacing

SIGNATURE_FILE = "manifest.sig"

_MOST_BYTES = 64 * 1024
_SAYS = b"token-broker bundle "  # so that no signature that the key makes elsewhere passes for one of a bundle


@dataclass(frozen=True)
class TrustedKeys:
    """The public keys whose signatures count. Without any key no bundle is trusted."""

    keys: tuple[Any, ...]

    @classmethod
    def read(cls, paths: Collection[str | Path]) -> TrustedKeys:
        """From files of Ed25519 public keys in PEM.

        Raises KeyFileError where one is none, or `paths` is no list; ImportError without the extra `signing`.
        """
        if isinstance(paths, str | Path) or not isinstance(paths, Collection):
            raise KeyFileError(f"trusted_keys is {paths!r}; expected a list of files")
        return cls(tuple(_key(Path(path), "public") for path in paths))

    def check(self, folder: Path, manifest: Manifest) -> None:
        """Raises SignatureError where none of the keys has signed the manifest of a bundle's folder."""
        try:
            signature = base64.b64decode(read_bounded(folder / SIGNATURE_FILE, _MOST_BYTES).strip(), validate=True)
        except OSError as error:
            raise SignatureError(folder, f"has no readable {SIGNATURE_FILE} ({error})") from error
        except binascii.Error as error:
            raise SignatureError(folder, f"has a {SIGNATURE_FILE} that is not base64 ({error})") from error
        invalid = _cryptography("exceptions").InvalidSignature
        for key in self.keys:
            try:
                key.verify(signature, _signed(manifest))
                return
            except invalid:
                continue
        raise SignatureError(folder, f"is not signed by any of {len(self.keys)} trusted keys")


def sign(folder: Path, manifest: Manifest, key_file: Path) -> Path:
    """Write the signature of a bundle's manifest beside it, in one step; the file written.

    key_file: an Ed25519 private key in PEM, without a passphrase.
    Raises KeyFileError where it is none, ImportError without the extra `signing`, and OSError.
    """
    signature = base64.b64encode(_key(key_file, "private").sign(_signed(manifest)))
    path = folder / SIGNATURE_FILE
    with replacing(path) as unfinished:
        unfinished.write_bytes(signature + b"\n")
    return path


def _signed(manifest: Manifest) -> bytes:
    return _SAYS + manifest.digest.encode()


def _key(path: Path, kind: str) -> Any:
    """The key of a file; kind: public or private."""
    serialization = _cryptography("hazmat.primitives.serialization")
    ed25519 = _cryptography("hazmat.primitives.asymmetric.ed25519")
    try:
        content = read_bounded(path, _MOST_BYTES)
        if kind == "public":
            key = serialization.load_pem_public_key(content)
        else:
            key = serialization.load_pem_private_key(content, password=None)
    except (OSError, ValueError, TypeError, _cryptography("exceptions").UnsupportedAlgorithm) as error:
        raise KeyFileError(f"{path}: no {kind} key in PEM without a passphrase ({error})") from error
    if not isinstance(key, ed25519.Ed25519PublicKey if kind == "public" else ed25519.Ed25519PrivateKey):
        raise KeyFileError(f"{path}: the key is a {type(key).__name__}; expected one of Ed25519")
    return key


def _cryptography(module: str) -> Any:
    try:
        return import_module(f"cryptography.{module}")
    except ImportError as error:
        raise ImportError(f"signatures need cryptography: {install_command('signing')}") from error
