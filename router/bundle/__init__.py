"""What a router loads: a folder with one ONNX graph, its manifest, and the files beside it."""

from router.bundle.bundle import Bundle
from router.bundle.manifest import FORMAT_VERSION, DialPoint, EncoderInfo, Manifest

__all__ = ["FORMAT_VERSION", "Bundle", "DialPoint", "EncoderInfo", "Manifest"]
