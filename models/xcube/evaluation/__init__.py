"""Comparison of generated shapes with real ones."""
