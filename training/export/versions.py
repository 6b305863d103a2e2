"""Versions of the software that makes a bundle."""

import platform
from importlib import metadata

_PACKAGES = ("token-broker", "lightgbm", "numpy", "onnx", "onnxruntime", "scikit-learn", "tokenizers")


def versions() -> dict[str, str]:
    """Version of Python and of each package that has a part in a bundle; "unknown" where one is not installed."""
    return {"python": platform.python_version()} | {package: _version(package) for package in _PACKAGES}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
