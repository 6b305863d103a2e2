"""Whether routing can pay at all, answered from a log before any training."""
