"""Laws of signatures: with trusted keys, only what one of them has signed is ever used."""

import base64
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from router import KeyFileError, Router, SignatureError, Watcher, cli
from router.bundle.manifest import read_manifest
from router.bundle.signature import SIGNATURE_FILE

pytest.importorskip("cryptography")

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PEM = serialization.Encoding.PEM


def write_keys(folder: Path, name: str, private=None, passphrase: bytes | None = None) -> tuple[Path, Path]:
    """Files of a private key and its public one, as `openssl genpkey` and `openssl pkey -pubout` write them."""
    private = private or Ed25519PrivateKey.generate()
    kind = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    files = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    files[0].write_bytes(private.private_bytes(PEM, serialization.PrivateFormat.PKCS8, kind))
    files[1].write_bytes(private.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    return files


@pytest.fixture
def keys(tmp_path) -> tuple[Path, Path]:
    return write_keys(tmp_path, "key")


@pytest.fixture
def signed(bundle, tmp_path, keys) -> Path:
    folder = shutil.copytree(bundle, tmp_path / "signed")
    assert cli.main(["sign", str(folder), "--key", str(keys[0])]) == 0
    return folder


def test_a_signed_bundle_is_taken_and_routes_as_ever(bundle, signed, keys, tmp_path):
    other = write_keys(tmp_path, "other")
    router = Router.load(signed, trusted_keys=[other[1], keys[1]])
    assert router.route("Hello!") == Router.load(bundle).route("Hello!")
    router.reload(signed)
    assert Router.load(signed).bundle.manifest == router.bundle.manifest, "a signature is no part of the bundle"


def unsigned(folder, keys, tmp_path):
    (folder / SIGNATURE_FILE).unlink()


def signed_by_another(folder, keys, tmp_path):
    assert cli.main(["sign", str(folder), "--key", str(write_keys(tmp_path, "another")[0])]) == 0


def no_base64(folder, keys, tmp_path):
    (folder / SIGNATURE_FILE).write_text("not base64!")


def cut_short(folder, keys, tmp_path):
    path = folder / SIGNATURE_FILE
    path.write_bytes(path.read_bytes()[:40])


def empty(folder, keys, tmp_path):
    (folder / SIGNATURE_FILE).write_bytes(b"")


def much_too_large(folder, keys, tmp_path):
    (folder / SIGNATURE_FILE).write_bytes(b"A" * 10**6)


def of_another_manifest(folder, keys, tmp_path):
    path = folder / "manifest.json"
    signature = (folder / SIGNATURE_FILE).read_bytes()

    path.write_text(replace(read_manifest(folder), confidence=0.5).to_json())
    (folder / SIGNATURE_FILE).write_bytes(signature)


WRONG = [unsigned, signed_by_another, no_base64, cut_short, empty, much_too_large, of_another_manifest]


@pytest.mark.parametrize("spoil", WRONG)
def test_what_no_trusted_key_has_signed_is_refused_and_the_present_bundle_stays(signed, keys, tmp_path, spoil):
    spoiled = shutil.copytree(signed, tmp_path / "spoiled")
    spoil(spoiled, keys, tmp_path)
    router = Router.load(signed, trusted_keys=[keys[1]])
    before = router.route("Hello!")
    for take in (
        lambda: Router.load(spoiled, trusted_keys=[keys[1]]),
        lambda: router.reload(spoiled),
        Watcher(router, spoiled).look,
    ):
        with pytest.raises(SignatureError, match="sign it with: broker sign") as refusal:
            take()
        assert refusal.value.folder == spoiled
    assert router.bundle.path == signed and router.route("Hello!") == before
    Router.load(spoiled)  # Who asks for no signature gets the bundle.


def test_an_altered_file_of_a_signed_bundle_is_refused(signed, keys):
    path = signed / "tiers.toml"
    path.write_text(path.read_text() + "\n# altered\n")
    with pytest.raises(Exception, match=r"tiers.toml has SHA-256"):
        Router.load(signed, trusted_keys=[keys[1]])


def test_without_any_key_nothing_is_trusted(signed):
    with pytest.raises(SignatureError, match="any of 0 trusted keys"):
        Router.load(signed, trusted_keys=[])


def test_a_signature_says_that_it_is_of_a_bundle(bundle, signed, keys, tmp_path):
    """So a signature of the bare digest, which the key may have made for another reason, does not count."""

    private = serialization.load_pem_private_key(keys[0].read_bytes(), password=None)
    digest = Router.load(signed).bundle.manifest.digest
    (signed / SIGNATURE_FILE).write_bytes(base64.b64encode(private.sign(digest.encode())))
    with pytest.raises(SignatureError):
        Router.load(signed, trusted_keys=[keys[1]])


def test_files_that_are_no_such_keys_are_refused_by_name(bundle, signed, keys, tmp_path, capsys):
    curve, locked = (
        write_keys(tmp_path, "curve", generate_private_key(SECP256R1())),
        write_keys(tmp_path, "locked", passphrase=b"secret"),
    )
    text, missing = tmp_path / "text.pem", tmp_path / "missing.pem"
    text.write_text("no key")
    for path in (text, missing, curve[1], keys[0]):
        with pytest.raises(KeyFileError, match=path.name):
            Router.load(signed, trusted_keys=[path])
    with pytest.raises(KeyFileError, match="expected a list"):
        Router.load(signed, trusted_keys=str(keys[1]))
    before = (signed / SIGNATURE_FILE).read_bytes()
    for path in (text, missing, curve[0], locked[0], keys[1]):
        assert cli.main(["sign", str(signed), "--key", str(path)]) == 2
        assert path.name in capsys.readouterr().err
    assert (signed / SIGNATURE_FILE).read_bytes() == before


def test_a_bundle_that_is_not_whole_is_not_signed(bundle, tmp_path, keys, capsys):
    folder = shutil.copytree(bundle, tmp_path / "broken")
    (folder / "clusters.json").write_text("[]")
    assert cli.main(["sign", str(folder), "--key", str(keys[0])]) != 0
    assert not (folder / SIGNATURE_FILE).exists() and "clusters.json" in capsys.readouterr().err


def test_verify_asks_for_a_signature_where_it_is_given_keys(bundle, signed, keys, capsys):
    assert cli.main(["verify", "--bundle", str(signed), "--trusted-key", str(keys[1])]) == 0
    assert cli.main(["verify", "--bundle", str(bundle), "--trusted-key", str(keys[1])]) == 1
    assert "broker sign" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is missing")
def test_the_documented_commands_make_a_key_that_signs(bundle, tmp_path):
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    private, public = tmp_path / "key.pem", tmp_path / "key.pub.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    assert cli.main(["sign", str(folder), "--key", str(private)]) == 0
    assert Router.load(folder, trusted_keys=[public]).route("Hello!").tier


def test_without_cryptography_only_signatures_fail_and_the_error_names_the_extra(bundle):
    code = (
        "import sys; sys.modules['cryptography'] = None; from router import Router; "
        f"Router.load({str(bundle)!r}); Router.load({str(bundle)!r}, trusted_keys=['x.pem'])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'token-broker[signing]'" in found.stderr.splitlines()[-1]
