"""Floating-point instructions and conversions."""
