"""Families of objects, one procedural generator per family, for `xcube.procedural.shapes`."""
