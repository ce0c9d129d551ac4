"""XCube, the reference model of sparsevox: large 3D scenes from a hierarchy of sparse voxel latent diffusion models.

This package will hold the sparse structure VAE, the dense and the sparse diffusion UNet, the refinement network,
and what trains them and samples from them. It imports `sparsevox`; `sparsevox` never imports it.
"""

__version__ = "0.1.0"
