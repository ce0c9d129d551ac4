"""Families of objects, made by rule: what `xcube.procedural.shapes` draws from."""
