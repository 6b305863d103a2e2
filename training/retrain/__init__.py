"""Retraining on a schedule: champion and challenger in a store."""

from training.retrain.run import Receipt, retrain, rollback

__all__ = ["Receipt", "retrain", "rollback"]
