"""Training in two processes: what they compute together is what one would, and none waits for the other in vain."""

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import torch

from sparsevox import Voxels
from tests.xcube.balls import SIDE, ball
from xcube.data.build import build
from xcube.data.hierarchy import Box
from xcube.data.loading import ShapeFolder
from xcube.data.sources import Source
from xcube.networks.configs import RefinerConfig, VAEConfig
from xcube.networks.losses import LossConfig, vae_losses
from xcube.networks.pretrained import from_pretrained
from xcube.networks.refiner import Refiner, refiner_losses
from xcube.networks.vae import VAE
from xcube.training.config import TrainConfig
from xcube.training.data import training_batches
from xcube.training.modules import VAEModule

STEPS = 3
MODEL = VAEConfig(voxel_size=1 / SIDE, channels=(8, 8), latent_channels=2, hidden=4)
# The cut-off empties the finest depth of a rank by its number of candidates, if these decide for themselves.
ASKED = replace(MODEL, architecture="official")
LOSS = LossConfig(structure=1.0, normal=0.3, kl=1e-3)
TRAIN = TrainConfig(
    steps=STEPS, batch_size=1, warmup=2, ema=0.0, seed=5, devices=2, accelerator="cpu", learning_rate=0.01
)

# Both ranks run this. The heads of the second network keep all there is, and the cutoff empties what is too much: that
# of the larger ball. The second rank believes to have begun five minutes before the other.
SCRIPT = """
import sys, torch
from pathlib import Path
from xcube.training.modules import VAEModule
from xcube.training.run import train_module
from xcube.training.train import LossConfig, TrainConfig, VAEConfig
from xcube.networks.vae import VAE

torch.set_num_threads(1)
data, out, cutoff = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
model, loss, options = {model}, {loss}, {train}

class Skewed(VAEModule):
    elapsed = property(lambda self: super().elapsed + 300 * self.global_rank)

def run(name, kind, model, options):
    torch.manual_seed(5)
    net, sizes = VAE(VAEConfig.from_dict(model)), []
    if model["cutoff"] is not None:
        for head in net.decoder.heads:
            torch.nn.init.zeros_(head.out.weight)
            head.out.bias.data.copy_(torch.tensor([10.0, -10.0]))
    hook = net.decoder.register_forward_hook(lambda m, i, decoded: sizes.append(decoded.voxels.num_voxels))
    module = train_module(kind(net, TrainConfig.from_dict(options), LossConfig(**loss)), data, out / name, quiet=True)
    torch.save([sizes, module.net.state_dict()], out / f"{{name}}-{{module.global_rank}}.pt")

run("plain", VAEModule, model, options)
shrunk = {{"keep": "predicted", "cutoff": cutoff, "box": [16, 16, 16]}}
run("empty", Skewed, model | shrunk, options | {{"minutes": 10.0, "ema": 0.9}})
"""


class Rank(VAEModule):
    """One that takes itself for a rank of its choice."""

    chosen = 0

    @property
    def global_rank(self) -> int:
        return self.chosen


def alone(shapes: ShapeFolder[Voxels]) -> dict[str, torch.Tensor]:
    """Weights after training in this process on the mean of the gradients of both ranks."""
    torch.manual_seed(5)
    module = Rank(VAE(ASKED), TRAIN, LOSS).train()
    parameters = list(module.net.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=TRAIN.learning_rate, weight_decay=TRAIN.weight_decay, fused=True)
    ranks = [list(islice(training_batches(shapes, TRAIN, 0, rank, 2), STEPS)) for rank in (0, 1)]
    for step, batches in enumerate(zip(*ranks, strict=True)):
        assert batches[0].num_voxels != batches[1].num_voxels
        gradients = []
        for module.chosen, batch in enumerate(batches):
            module.zero_grad()
            module.losses(batch, step, module._noise(step, 0)).total.backward()
            gradients.append([p.grad for p in parameters])
        for parameter, first, second in zip(parameters, *gradients, strict=True):
            assert first is not None
            assert second is not None
            parameter.grad = (first + second) / 2
        torch.nn.utils.clip_grad_norm_(parameters, TRAIN.clip_norm)
        optimizer.param_groups[0]["lr"] = TRAIN.learning_rate * TRAIN.rate(step, 0)
        optimizer.step()
    return module.net.state_dict()


def test_two_processes_train_as_one_would(tmp_path: Path) -> None:
    sources = [Source(f"ball-{r}", partial(ball, r), split="train") for r in (2.5, 3.5, 4.5, 5.5)]
    build(sources, tmp_path / "data", Box((SIDE,)))
    shapes = ShapeFolder[Voxels](tmp_path / "data")
    grids = [next(iter(training_batches(shapes, TRAIN, 0, rank, 2))).grid for rank in (0, 1)]
    children = [8 * VAE(ASKED).latent_grid(grid).num_voxels for grid in grids]
    cutoff = sum(children) / 2 / SIDE**3
    script = SCRIPT.format(model=ASKED.to_dict(), loss=LOSS.to_dict(), train=TRAIN.to_dict())
    (tmp_path / "run.py").write_text(script)
    words = [str(tmp_path / name) for name in ("run.py", "data", "out")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    (tmp_path / "out").mkdir()
    subprocess.run([sys.executable, "-W", "ignore", *words, str(cutoff)], check=True, env=environment, timeout=300)
    ended = {n: [torch.load(tmp_path / "out" / f"{n}-{rank}.pt") for rank in (0, 1)] for n in ("plain", "empty")}
    for (_, first), (_, second) in ended.values():
        assert all(torch.equal(value, second[name]) for name, value in first.items())
    kept = from_pretrained(tmp_path / "out" / "plain", VAE).state_dict()
    for name, value in alone(shapes).items():
        torch.testing.assert_close(kept[name], value, rtol=1e-4, atol=1e-6)
    sizes = [counts[0] for counts, _ in ended["empty"]]
    assert [size == 0 for size in sizes] == [count == max(children) for count in children]
    assert all(value.isfinite().all() for value in ended["empty"][0][1].values())


@pytest.mark.parametrize("radius", [0.0, 4.0])
def test_every_parameter_has_a_gradient_even_of_nothing(radius: float) -> None:
    """So processes need not look for those without one (`find_unused_parameters`), which costs a walk a step."""
    voxels = ball(4.0).prune(torch.full((ball(4.0).num_voxels,), radius > 0))
    vae, refiner = VAE(MODEL).train(), Refiner(RefinerConfig(voxel_size=1 / SIDE, channels=(8, 8, 8)))
    torch.nn.init.zeros_(vae.decoder.root.out.weight)
    torch.nn.init.constant_(vae.decoder.root.out.bias, -1.0)
    posterior = vae.encode(voxels)
    decoded = vae.decode(posterior.sample())
    assert decoded.voxels.num_voxels == 0
    vae_losses(vae, voxels, posterior, decoded, LOSS).total.backward()
    rough = decoded.voxels.with_attributes(normal=decoded.voxels.attributes["normal"].detach())
    refiner_losses(refiner(rough), voxels).total.backward()
    idle = [name for net in (vae, refiner) for name, p in net.named_parameters() if p.grad is None]
    assert not idle
