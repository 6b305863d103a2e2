"""Calibrating the quality dial: which slack keeps which quality, with confidence."""
