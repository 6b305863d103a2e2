"""Tiers, their offers, and what these cost now."""
