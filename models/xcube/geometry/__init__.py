"""Geometry for several packages: grids at every resolution, normals, connected components, distances."""
