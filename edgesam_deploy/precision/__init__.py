"""Ranges and calibration: what low precision needs to know of the values in a network."""
