"""The networks: the sparse structure VAE, the denoiser and the refiner, and their layers, configurations and losses."""
