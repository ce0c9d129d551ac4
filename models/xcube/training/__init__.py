"""Training with Lightning: `xcube train vae`, `xcube train refiner`."""
