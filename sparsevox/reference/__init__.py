"""Plain PyTorch: the definition of every op, the CPU backend, and the oracle for the kernels."""
