"""Building the ONNX graph that ships."""
