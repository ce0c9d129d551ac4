"""The official networks: their hyper-parameters, parameter names and checkpoints."""

from xcube.checkpoints.convert import convert, vae_from_official

__all__ = ["convert", "vae_from_official"]
