"""Plain PyTorch: the definition of every op, the backend of the CPU, and the oracle of the kernels."""
