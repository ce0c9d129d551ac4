"""Geometry that several rooms share: grids at every resolution, normals, connected components, distances."""
