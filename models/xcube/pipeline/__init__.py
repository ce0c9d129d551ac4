"""Sampling, upsampling and reconstruction with trained networks, level by level."""
