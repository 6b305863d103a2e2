"""Write a bundle: a complete draft first, its manifest last."""

from __future__ import annotations

import errno
import hashlib
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import onnx

from router.bundle.bundle import Bundle
from router.bundle.clusters import Cluster, clusters_text
from router.bundle.manifest import (
    CLUSTERS_FILE,
    GOLDEN_FILE,
    GRAPH_FILE,
    MANIFEST_FILE,
    REQUIRED_FILES,
    TIERS_FILE,
    TOKENIZER_FILE,
    Manifest,
    read_manifest,
)
from router.plans.planner import GOLDEN_PLANS_FILE
from router.router import Router
from training.encoders.encoder import Encoder
from training.errors import ConfigError
from training.export.golden import golden_files


@dataclass(frozen=True)
class BundleDraft:
    """A bundle being written, in a folder beside its target; `publish` puts it in its place."""

    folder: Path
    target: Path
    manifest: Manifest

    def publish(self) -> Manifest:
        """Write the manifest with the digest of every file, then move the folder to its target.

        A bundle that is already there is replaced. Returns the manifest.
        """
        names = sorted(path.name for path in self.folder.iterdir() if path.name != MANIFEST_FILE)
        manifest = _with_manifest(self.folder, names, self.manifest)
        replaced = self.target.with_name(f".{self.target.name}.{uuid4().hex}.old")
        if self.target.exists():
            self.target.rename(replaced)
        self.folder.rename(self.target)
        shutil.rmtree(replaced, ignore_errors=True)
        return manifest


def check_target(target: Path) -> None:
    """See that a bundle can be written to `target`; its parent folder is made where there is none.

    Raises ConfigError where `target` is a file, or a folder that holds something other than a bundle, or where nothing
    can be written beside it; OSError where the disk is full.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise ConfigError(
            f"{target.parent} cannot be written to ({error.strerror}); name another folder with --out"
        ) from error
    if target.is_file() or (target.is_dir() and any(target.iterdir()) and not (target / MANIFEST_FILE).exists()):
        raise ConfigError(f"{target} exists and is no bundle; name a new folder with --out, or remove it")


def draft_bundle(
    target: Path,
    encoder: Encoder,
    graph: onnx.ModelProto,
    tiers_text: str,
    clusters: tuple[Cluster, ...],
    plan_files: Mapping[str, bytes],
    manifest: Manifest,
) -> BundleDraft:
    """Write graph, tokenizer, tiers, clusters, plans and golden prompts into a folder beside `target`.

    The runtime can load the draft already. plan_files: what plans are made of and proven on; empty where the bundle
    makes none. manifest: without files. Where this raises, the folder is removed.
    Raises BundleError where the runtime cannot load what was written, OSError where it cannot be written.
    """
    folder = target.with_name(f".{target.name}.{uuid4().hex}.tmp")
    folder.mkdir()
    try:
        (folder / GRAPH_FILE).write_bytes(graph.SerializeToString(deterministic=True))
        (folder / TOKENIZER_FILE).write_text(encoder.tokenizer_json, encoding="utf-8")
        (folder / TIERS_FILE).write_text(tiers_text, encoding="utf-8")
        (folder / CLUSTERS_FILE).write_text(clusters_text(clusters), encoding="utf-8")
        (folder / GOLDEN_FILE).write_text("", encoding="utf-8")
        if plan_files:
            plan_files = {**plan_files, GOLDEN_PLANS_FILE: b""}
        for name, content in plan_files.items():
            (folder / name).write_bytes(content)
        return _sealed(folder, target, (*REQUIRED_FILES, *plan_files), manifest)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def draft_version(source: Path, target: Path, manifest: Manifest, changed: Mapping[str, bytes]) -> BundleDraft:
    """Copy a bundle into a folder beside `target`, with another manifest and other contents of some of its files.

    manifest: without files. The golden files are written anew, since another manifest may mean other decisions. Where
    this raises, the folder is removed. Raises BundleError and OSError as `draft_bundle` does.
    """
    folder = target.with_name(f".{target.name}.{uuid4().hex}.tmp")
    folder.mkdir()
    try:
        names = read_manifest(source).files.keys()
        for name in names:
            (folder / name).write_bytes(changed[name] if name in changed else (source / name).read_bytes())
        return _sealed(folder, target, names, manifest)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _sealed(folder: Path, target: Path, names: Iterable[str], manifest: Manifest) -> BundleDraft:
    """Write the manifest, then the golden files of the bundle that it makes, and the manifest with their digests."""
    _with_manifest(folder, names, manifest)
    for name, text in golden_files(Router(Bundle.load(folder))).items():
        (folder / name).write_text(text, encoding="utf-8")
    return BundleDraft(folder=folder, target=target, manifest=_with_manifest(folder, names, manifest))


def _with_manifest(folder: Path, names: Iterable[str], manifest: Manifest) -> Manifest:
    """Write the manifest with the SHA-256 of each named file; returns it."""
    files = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    manifest = replace(manifest, files=files)
    (folder / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    return manifest
