"""Diffusion of latents: the noise schedule, what a denoiser predicts, and samplers."""
