"""The networks: the sparse structure VAE, the denoiser and the refiner, and what they are built of."""
