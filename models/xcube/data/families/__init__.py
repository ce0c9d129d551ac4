"""Families of objects, made by rule: what `xcube.data.parts` draws from."""
