"""The log of decisions and their outcomes (extra `outcomes`)."""

from router.outcomes.log import Compaction, OutcomeLog

__all__ = ["Compaction", "OutcomeLog"]
