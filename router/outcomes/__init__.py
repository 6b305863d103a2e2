"""The log of decisions and their outcomes (extra `outcomes`)."""

from router.outcomes.compaction import Compaction
from router.outcomes.log import OutcomeLog

__all__ = ["Compaction", "OutcomeLog"]
