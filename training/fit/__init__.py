"""Learning success, length and familiarity from embeddings and outcomes."""
