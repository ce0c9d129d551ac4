"""XCube (Ren et al., CVPR 2024): 3D shapes and scenes from a cascade of sparse voxel latent diffusion models.

    >>> import sparsevox as sv
    >>> from xcube import VAE, VAEConfig, XCubePipeline
    >>> pipeline = XCubePipeline.from_pretrained("runs")  # the folder of `xcube train all`
    >>> sample = pipeline.sample(1, seed=0, steps=20)[0]
    >>> voxels = sample.finest  # a grid, and attributes such as normals
    >>> mesh = sv.io.to_mesh(voxels)
    >>> sv.io.save_mesh(mesh, "sample.ply")
    >>> vae = VAE(VAEConfig(voxel_size=voxels.grid.voxel_size))  # with random weights
    >>> posterior, decoded = vae(voxels)
    >>> latents = posterior.mean  # [M, 8], at the voxels of posterior.grid

`networks` holds the VAE, the denoiser and the refiner, `diffusion` schedules, objectives and samplers, `pipeline`
sampling and reconstruction, `data` datasets in folders, `procedural` shapes and scenes made by rules, `training`
Lightning modules and runs, `evaluation` metrics, `checkpoints` the conversion of official checkpoints, and `commands`
the command `xcube`. The names below are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xcube.data.loading import ShapeFolder
    from xcube.diffusion.samplers import SamplerConfig
    from xcube.networks.configs import RefinerConfig, UNetConfig, VAEConfig
    from xcube.networks.refiner import Refiner
    from xcube.networks.unet import UNet
    from xcube.networks.vae import VAE
    from xcube.pipeline.options import Sample, SampleOptions
    from xcube.pipeline.pipeline import XCubePipeline

__version__ = "0.1.0"

__all__ = [
    "VAE",
    "Refiner",
    "RefinerConfig",
    "Sample",
    "SampleOptions",
    "SamplerConfig",
    "ShapeFolder",
    "UNet",
    "UNetConfig",
    "VAEConfig",
    "XCubePipeline",
]

_MODULES = {
    "Refiner": "xcube.networks.refiner",
    "RefinerConfig": "xcube.networks.configs",
    "Sample": "xcube.pipeline.options",
    "SampleOptions": "xcube.pipeline.options",
    "SamplerConfig": "xcube.diffusion.samplers",
    "ShapeFolder": "xcube.data.loading",
    "UNet": "xcube.networks.unet",
    "UNetConfig": "xcube.networks.configs",
    "VAE": "xcube.networks.vae",
    "VAEConfig": "xcube.networks.configs",
    "XCubePipeline": "xcube.pipeline.pipeline",
}

if not TYPE_CHECKING:  # a type checker would take every name for one of the package

    def __getattr__(name: str) -> Any:
        """Import a public name."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_MODULES[name]), name)
        return value

    def __dir__() -> list[str]:
        """The names of the module and the public names, imported or not."""
        return sorted({*globals(), *__all__})
