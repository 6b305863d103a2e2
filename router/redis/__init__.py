"""State that several workers share through Redis or Valkey (extra `redis`)."""

from router.redis.state import SharedState

__all__ = ["SharedState"]
