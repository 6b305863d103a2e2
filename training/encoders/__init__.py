"""From prompts to embeddings, as an ONNX graph that trains and serves alike."""
