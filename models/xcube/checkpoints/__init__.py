"""The official networks: their hyper-parameters, parameter names and checkpoints."""

from xcube.checkpoints.convert import convert, from_official

__all__ = ["convert", "from_official"]
