"""Should this log be routed at all? Answered before any training."""
