"""Trained weights as the start of a run, in place of random ones."""

from pathlib import Path

from xcube.networks.pretrained import WEIGHTS, digest, load_weights, read_config
from xcube.training.modules import NetworkModule

# Options that give the inputs and outputs of a network their meaning.
MEANING = ("scale", "diffusion", "categories", "text_model")


def load_initial(module: NetworkModule, folder: Path) -> None:
    """Load the weights of a trained network into that of a run, and record their digest in the options of the run.

    Raises:
        FileNotFoundError: If there are none.
        ValueError: If the folder holds a network of another kind, configuration or meaning (scale of the latents,
            diffusion, categories), or a damaged file.
    """
    values = read_config(folder)
    metadata = values["metadata"]
    recorded = metadata | metadata.get("options", {})
    if "latent_scale" in metadata:
        recorded["scale"] = metadata["latent_scale"]
    own, other = module.options, {"kind": values["kind"], "model": values["config"]}
    names = ["kind", "model", *(name for name in MEANING if name in own and name in recorded)]
    for name in names:
        expected, got = own[name], (other | recorded)[name]
        if isinstance(expected, dict) and isinstance(got, dict):
            differ = sorted(key for key in expected.keys() | got.keys() if expected.get(key) != got.get(key))
            expected, got = ({key: each.get(key) for key in differ} for each in (expected, got))
        if expected != got:
            raise ValueError(f"initial must hold a network with the {name} of the run, {expected}, got {got}")
    load_weights(module.net, folder)
    module.options["initial"] = digest(folder / WEIGHTS)
