"""Triton kernels and their launchers. Same stems, names and signatures as in `sparsevox.reference`."""
