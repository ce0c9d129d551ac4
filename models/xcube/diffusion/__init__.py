"""Diffusion of latents: the noise schedule, prediction targets of denoisers, and samplers."""
