"""Latents out of noise, with a trained denoiser.

M latent voxels, L channels, B grids.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor

from sparsevox import Grid, SparseTensor
from xcube.config import Config
from xcube.diffusion.objective import NAMES, Denoiser, Diffusion, DiffusionConfig, ddim_schedule
from xcube.diffusion.schedule import STEPS, official_schedule
from xcube.networks.conditions import Conditions

Kind = Literal["ddim", "ddpm", "dpm++", "flow"]
COARSER = 8  # levels that a denoiser has, at most

# Gives the next standard normal numbers [M, L] for a grid and a number of channels, as `objective.Noise` does.
NoiseSource = Callable[[Grid, int], Tensor]
# What may change noisy latents before they are denoised; it is told their time, None for the finished ones.
Hook = Callable[[SparseTensor, float | None], SparseTensor]


@dataclass(frozen=True)
class SamplerConfig(Config):
    """How to get from noise to latents.

    Args:
        sampler: Sampler: "ddim" (Song et al. 2021, arXiv:2010.02502); "ddpm", ancestral sampling, which is DDIM with
            eta 1; "dpm++" (Lu et al. 2022, arXiv:2211.01095); "flow", Euler steps, which flows always take.
        steps: Calls of the denoiser, at most 1000; twice as many with guidance.
        eta: Noise that DDIM adds on its way, from 0, none, to 1.
        spacing: Steps of DDIM are counted from the first, "leading", as in the release, or from the last, "trailing",
            which begins at full noise and needs a divisor of 1000.
        order: Of DPM-Solver++, 1 to 3.
        karras: Whether it spaces its steps as Karras et al. (2022, arXiv:2206.00364).
        official: Whether it ends at the first of the 1000 steps, with a little noise, and uses whole steps, as in the
            release.
        guidance: Weight of the conditions (Ho & Salimans 2022, arXiv:2207.12598).
        formula: "usual": `without + guidance * (with - without)`, so 1 is no guidance; "official": `with + guidance *
            (with - without)`, but none at 1.
    """

    sampler: Kind = "ddim"
    steps: int = 50
    eta: float = 0.0
    spacing: Literal["leading", "trailing"] = "leading"
    order: int = 2
    karras: bool = False
    official: bool = False
    guidance: float = 1.0
    formula: Literal["usual", "official"] = "usual"

    def __post_init__(self) -> None:
        choices = {"sampler": get_args(Kind), "spacing": ("leading", "trailing"), "formula": ("usual", "official")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if not 0 <= self.eta <= 1 or self.order not in (1, 2, 3):
            raise ValueError(f"eta must lie in [0, 1] and order in 1 to 3, got {self.eta} and {self.order}")
        if not math.isfinite(self.guidance):
            raise ValueError(f"guidance must be finite, got {self.guidance}")
        self.check_schedule()

    def check_schedule(self) -> None:
        """Raise ValueError unless the sampler can take this number of steps."""
        if not 1 <= self.steps <= STEPS or (self.sampler == "dpm++" and self.steps == STEPS):
            raise ValueError(f"steps must lie in [1, {STEPS}], less for dpm++, got {self.steps}")
        if self.spacing == "trailing" and STEPS % self.steps:
            raise ValueError(f"steps must divide {STEPS} with spacing 'trailing', got {self.steps}")
        first = STEPS // self.steps * self.steps
        if self.sampler in ("ddim", "ddpm") and self.spacing == "leading" and first < 0.9 * STEPS:
            some = [STEPS // (STEPS // self.steps + more) for more in (1, 0)]
            raise ValueError(
                f"steps of DDIM must come near {STEPS} when multiplied with a whole number, as {some[0]} and {some[1]} "
                f"do: {self.steps} of them would begin at {first} of {STEPS}, before all is noise"
            )
        if self.official and self.sampler == "dpm++" and self.karras and self.order == 3 and self.steps >= 15:
            raise ValueError(f"with order 3, karras and {self.steps} steps the release's result is not a number")

    @property
    def weight(self) -> float:
        """Guidance in the usual formula."""
        return self.guidance if self.formula == "usual" or self.guidance == 1 else 1 + self.guidance

    @classmethod
    def official_defaults(cls, **changes: Any) -> Self:
        """What the release samples with: 100 steps of DDIM, which add noise, as they are called without an eta."""
        released: dict[str, Any] = {"steps": 100, "eta": 1.0, "formula": "official", "order": 3, "official": True}
        return cls(**(released | changes))


def sample_latents(
    denoiser: Denoiser,
    grid: Grid,
    channels: int,
    noise: NoiseSource,
    *,
    diffusion: Diffusion,
    sampler: SamplerConfig = SamplerConfig(),
    conditions: Conditions = Conditions(),  # noqa: B008  (immutable)
    unconditional: Conditions | None = None,
    hook: Hook | None = None,
    watch: Callable[[int, int], object] | None = None,
) -> SparseTensor:
    """Latents [M, L] on a latent grid. No gradient flows through them.

    Args:
        denoiser: What predicts.
        grid: The latent grids.
        channels: L.
        noise: Source of noise. It is asked once for the beginning, then, if the sampler adds noise, once a step.
        diffusion: What the denoiser was trained for.
        sampler: How to go.
        conditions: What it is told.
        unconditional: What it is told otherwise, for guidance.
        hook: What may change latents before every step and at the end, as `keep_known_latents` does.
        watch: Called after every step with the number of steps done and of all.

    Raises:
        ValueError: If the sampler does not fit what the denoiser predicts, there is guidance without `unconditional`,
            or a result of the denoiser or the hook has another shape.
    """
    if (sampler.sampler == "flow") != diffusion.is_flow:
        raise ValueError(f"sampler must be 'flow' for a flow, and only then, got {sampler.sampler!r}")
    if sampler.weight != 1 and unconditional is None:
        raise ValueError(f"guidance {sampler.guidance} needs unconditional beside conditions")
    solver = Solver(sampler, diffusion.config)
    # Grids know coarser ones, and these their kernel maps, for as long as somebody has them.
    coarser = [grid]
    while len(coarser) < COARSER and coarser[-1].num_voxels > grid.batch_size:
        coarser.append(coarser[-1].coarsen(2))
    shape = (grid.num_voxels, channels)

    with torch.no_grad():
        x = SparseTensor(grid, _checked("noise", noise(grid, channels), shape))
        for number, t in enumerate(solver.times):
            if hook is not None:
                x = x.replace(_checked("hook", hook(x, float(t)).feats, shape))
            told = t.to(grid.device).expand(grid.batch_size)
            prediction = denoiser(x, told, conditions).feats
            if sampler.weight != 1 and unconditional is not None:
                prediction = torch.lerp(denoiser(x, told, unconditional).feats, prediction, sampler.weight)
            fresh = noise(grid, channels).to(x.dtype) if solver.eta else None
            x = x.replace(solver.step(_checked("denoiser", prediction, shape).to(x.dtype), t, x.feats, fresh))
            if watch is not None:
                watch(number + 1, len(solver.times))
        return x if hook is None else x.replace(_checked("hook", hook(x, None).feats, shape))


class Solver:
    """A scheduler of diffusers, and the times at which it wants to know what the denoiser predicts.

    times: From noise to latents, [steps].
    eta: Noise that it adds at every step.
    """

    def __init__(self, sampler: SamplerConfig, config: DiffusionConfig) -> None:
        from diffusers import FlowMatchEulerDiscreteScheduler  # slow to import

        self.eta = {"ddpm": 1.0, "ddim": sampler.eta}.get(sampler.sampler, 0.0)
        if sampler.sampler == "flow":
            self._scheduler: Any = FlowMatchEulerDiscreteScheduler(STEPS, shift=config.shift)
        elif sampler.sampler == "dpm++":
            self._scheduler = _dpm_solver(sampler, config)
        else:
            self._scheduler = ddim_schedule(config, sampler.spacing)
        with warnings.catch_warnings():  # diffusers hands tensors to NumPy in a way that both will give up
            warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
            self._scheduler.set_timesteps(sampler.steps)
        if sampler.sampler == "dpm++" and sampler.official:
            whole = [*self._scheduler.timesteps, 0]
            kept = self._scheduler.alphas_cumprod[torch.tensor(whole)]
            self._scheduler.sigmas = ((1 - kept) / kept).sqrt()
        self.times: Tensor = self._scheduler.timesteps

    def step(self, prediction: Tensor, t: Tensor, x: Tensor, noise: Tensor | None) -> Tensor:
        """Latents [M, L] with the noise of the next time; `noise` is what is added, if there is an eta."""
        if noise is None:
            result: Tensor = self._scheduler.step(prediction, t, x).prev_sample
        else:
            result = self._scheduler.step(prediction, t, x, eta=self.eta, variance_noise=noise).prev_sample
        return result


def keep_known_latents(diffusion: Diffusion, latents: SparseTensor, mask: Tensor, noise: Tensor) -> Hook:
    """A hook that keeps latents that are known, and lets the sampler find others that fit.

    That is RePaint without its jumps back (Lugmayr et al. 2022, arXiv:2201.09865).

    Args:
        diffusion: What the denoiser was trained for.
        latents: Scaled as the denoiser's, [M, L].
        mask: Which are known, bool [M].
        noise: That of the known ones on the way, [M, L].

    Raises:
        ValueError: If shapes do not fit.
    """
    if mask.shape != (latents.grid.num_voxels,) or mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool [{latents.grid.num_voxels}], got {mask.dtype} {list(mask.shape)}")

    def hook(x: SparseTensor, t: float | None) -> SparseTensor:
        known = latents
        if t is not None:
            known = diffusion.add_noise(latents, noise, t if diffusion.is_flow else round(t))
        return x.replace(torch.where(mask[:, None], known.feats.to(x.dtype), x.feats))

    return hook


def _dpm_solver(sampler: SamplerConfig, config: DiffusionConfig) -> Any:
    from diffusers import DPMSolverMultistepScheduler  # slow to import

    return DPMSolverMultistepScheduler.from_config(
        official_schedule().config,
        prediction_type=NAMES[config.prediction],
        algorithm_type="dpmsolver++",
        solver_order=sampler.order,
        use_karras_sigmas=sampler.karras,
        timestep_spacing="linspace",
        final_sigmas_type="sigma_min" if sampler.official else "zero",
    )


def _checked(name: str, values: Tensor, shape: tuple[int, int]) -> Tensor:
    if values.shape != shape:
        raise ValueError(f"{name} must give {list(shape)}, got {list(values.shape)}")
    return values
