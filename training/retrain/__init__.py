"""Retraining on a schedule: champion and challenger in a store."""

from training.retrain.receipt import Receipt
from training.retrain.run import retrain, rollback

__all__ = ["Receipt", "retrain", "rollback"]
