"""Judging a router on outcomes that it was not trained on."""
