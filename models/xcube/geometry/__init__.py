"""Geometry that several rooms share: grid pyramids, normals, connected components, distances."""
