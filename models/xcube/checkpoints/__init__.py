"""The official networks: their hyperparameters, parameter names and checkpoints."""

from xcube.checkpoints.convert import convert, vae_from_official

__all__ = ["convert", "vae_from_official"]
