"""Samplers: from noise to latents with a trained denoiser.

M latent voxels, L channels, B grids.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor

from sparsevox import Grid, SparseTensor
from xcube.config import Config
from xcube.diffusion.objective import NAMES, Denoiser, Diffusion, DiffusionConfig, ddim_schedule
from xcube.diffusion.schedule import STEPS, official_schedule
from xcube.networks.conditions import Conditions

Kind = Literal["ddim", "ddpm", "dpm++", "flow"]
RESOLUTIONS = 8  # the maximum of a denoiser

# Draws the next standard normal numbers [M, L] for a grid and a number of channels, as `objective.Noise` does.
NoiseSource = Callable[[Grid, int], Tensor]
# Changes noisy latents before each step, given their time, and the finished latents, given None.
Hook = Callable[[SparseTensor, float | None], SparseTensor]


@dataclass(frozen=True)
class SamplerConfig(Config):
    """The sampler and its options.

    Args:
        sampler: Sampler: "ddim" (Song et al. 2021, arXiv:2010.02502); "ddpm", ancestral sampling, which is DDIM with
            eta 1; "dpm++" (Lu et al. 2022, arXiv:2211.01095); "flow", Euler steps, always used for flow matching.
        steps: Number of steps, at most 1000. Each calls the denoiser once, or twice with guidance.
        eta: Amount of noise that DDIM adds at each step, from 0 (none) to 1 (as much as ancestral sampling).
        spacing: Spacing of the timesteps of DDIM: "leading" counts up from the first of the 1000, as in the official
            code; "trailing" counts down from the last, starts at full noise, and needs steps that divide 1000.
        order: Order of DPM-Solver++, from 1 to 3.
        karras: Whether DPM-Solver++ spaces its steps as in Karras et al. (2022, arXiv:2206.00364).
        official: Whether DPM-Solver++ rounds its timesteps to integers and ends at the first of the 1000, with a little
            noise left, as in the official code.
        guidance: Weight of classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598); 1 for none.
        repeats: Number of times that each step is taken. Noise is added back before each further time, so that new
            latents come to fit known ones (RePaint, Lugmayr et al. 2022, arXiv:2201.09865). Not for DPM-Solver++.
        formula: Formula of guidance: "usual", `uncond + guidance * (cond - uncond)`, or "official",
            `cond + guidance * (cond - uncond)`, except that a weight of 1 disables guidance.
    """

    sampler: Kind = "ddim"
    steps: int = 50
    eta: float = 0.0
    spacing: Literal["leading", "trailing"] = "leading"
    order: int = 2
    karras: bool = False
    official: bool = False
    guidance: float = 1.0
    repeats: int = 1
    formula: Literal["usual", "official"] = "usual"

    def __post_init__(self) -> None:
        self._check_choices(sampler=get_args(Kind), spacing=("leading", "trailing"), formula=("usual", "official"))
        if not 0 <= self.eta <= 1 or self.order not in (1, 2, 3):
            raise ValueError(f"eta must lie in [0, 1] and order in 1 to 3, got {self.eta} and {self.order}")
        if self.repeats < 1 or (self.repeats > 1 and self.sampler == "dpm++"):
            raise ValueError(f"repeats must be at least 1, and 1 for dpm++, got {self.repeats}")
        if not math.isfinite(self.guidance):
            raise ValueError(f"guidance must be finite, got {self.guidance}")
        if not 1 <= self.steps <= STEPS or (self.sampler == "dpm++" and self.steps == STEPS):
            raise ValueError(f"steps must lie in [1, {STEPS}], less for dpm++, got {self.steps}")
        if self.sampler in ("ddim", "ddpm") and self.spacing == "trailing" and STEPS % self.steps:
            raise ValueError(f"steps must divide {STEPS} with spacing 'trailing', got {self.steps}")
        first = STEPS // self.steps * self.steps
        if self.sampler in ("ddim", "ddpm") and self.spacing == "leading" and first < 0.9 * STEPS:
            below, above = (STEPS // (STEPS // self.steps + more) for more in (1, 0))
            raise ValueError(
                f"steps of DDIM must nearly divide {STEPS}, as {below} and {above} do, got {self.steps}, which would "
                f"start at {first} of {STEPS}, short of full noise"
            )
        if self.official and self.sampler == "dpm++" and self.karras and self.order == 3 and self.steps >= 15:
            raise ValueError(
                f"steps must be below 15 with official, karras and order 3 (more give NaN), got {self.steps}"
            )

    @property
    def weight(self) -> float:
        """The weight of guidance in the usual formula."""
        return self.guidance if self.formula == "usual" or self.guidance == 1 else 1 + self.guidance

    @classmethod
    def official_defaults(cls, **changes: Any) -> Self:
        """The default sampler of the official code: 100 steps of DDIM with eta 1."""
        defaults: dict[str, Any] = {"steps": 100, "eta": 1.0, "formula": "official", "order": 3, "official": True}
        return cls(**(defaults | changes))


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
    start: SparseTensor | None = None,
    strength: float = 1.0,
    hook: Hook | None = None,
    watch: Callable[[int, int], object] | None = None,
) -> SparseTensor:
    """Sample latents [M, L] on a latent grid, from noise. Gradients are not computed.

    With `start`, the result is a variation of given latents: these get noise and are denoised again (SDEdit, Meng et
    al. 2022, arXiv:2108.01073).

    Args:
        denoiser: The denoiser, or any function of noisy latents, times [B] and conditions.
        grid: The latent grids.
        channels: Number of channels L of a latent vector.
        noise: Source of noise, called once for the start and, if the sampler adds noise, once per step and repeat.
        diffusion: The diffusion process that the denoiser was trained with.
        sampler: The sampler and its options.
        conditions: The conditions of the denoiser.
        unconditional: The conditions of the second call of each step, for classifier-free guidance.
        start: Latents to vary, on `grid`, scaled as those of the denoiser.
        strength: Fraction of the steps that vary `start`, the last ones, from 0 (none; it is returned as it is) to 1.
        hook: Function that may change the latents before each step and at the end; see `keep_known_latents`.
        watch: Function called after each step with the number of finished steps and of all steps.

    Raises:
        ValueError: If the sampler does not fit the prediction of the denoiser, there is guidance without
            `unconditional`, `strength` is outside [0, 1] or less than 1 without `start`, `start` has other voxels than
            `grid`, or `start`, the denoiser, the hook or the noise has a wrong shape.
    """
    if (sampler.sampler == "flow") != diffusion.is_flow:
        raise ValueError(f"sampler must be 'flow' if and only if the denoiser predicts a flow, got {sampler.sampler!r}")
    check_guidance(sampler, unconditional)
    if not 0 <= strength <= 1 or (start is None and strength < 1):
        raise ValueError(f"strength must lie in [0, 1], and be 1 without start, got {strength}")
    if start is not None and start.grid is not grid and not start.grid.same_voxels(grid):
        raise ValueError(f"start must have the voxels of grid, got {start.grid} and {grid}")
    solver = Solver(sampler, diffusion.config)
    chosen = solver.times[len(solver.times) - round(strength * len(solver.times)) :]
    following = [*chosen[1:].tolist(), None]  # the time after each step; None without noise
    # Keep references to the coarser grids, whose caches hold kernel maps, so that all steps use the same ones.
    coarser = [grid]
    while len(coarser) < RESOLUTIONS and coarser[-1].num_voxels > grid.batch_size:
        coarser.append(coarser[-1].coarsen(2))
    shape = (grid.num_voxels, channels)

    with torch.no_grad():
        # 1. Noise.
        x = SparseTensor(grid, _checked("noise", noise(grid, channels), shape))
        if start is not None:
            known = SparseTensor(grid, _checked("start", start.feats, shape))
            x = diffusion.add_noise(known, x.feats.to(start.dtype), chosen[0]) if len(chosen) else known
        for number, t in enumerate(chosen):
            for repeat in range(sampler.repeats):
                # 2. Add noise back to take the step again.
                if repeat:
                    x = diffusion.add_noise_back(x, noise(grid, channels).to(x.dtype), following[number], float(t))
                    solver = Solver(sampler, diffusion.config)  # it counts its steps
                # 3. Let the hook change the noisy latents.
                if hook is not None:
                    x = x.replace(_checked("hook", hook(x, float(t)).feats, shape))
                # 4. Predict, with classifier-free guidance.
                times = t.to(grid.device).expand(grid.batch_size)  # [B]
                prediction = denoiser(x, times, conditions).feats  # [M, L]
                if sampler.weight != 1 and unconditional is not None:
                    prediction = torch.lerp(denoiser(x, times, unconditional).feats, prediction, sampler.weight)
                # 5. Take a step toward less noise.
                fresh = noise(grid, channels).to(x.dtype) if solver.eta else None
                x = x.replace(solver.step(_checked("denoiser", prediction, shape).to(x.dtype), t, x.feats, fresh))
            if watch is not None:
                watch(number + 1, len(chosen))
        return x if hook is None else x.replace(_checked("hook", hook(x, None).feats, shape))


def check_guidance(sampler: SamplerConfig, unconditional: Conditions | None) -> None:
    """Raise ValueError if a sampler has guidance and there are no conditions for its second call."""
    if sampler.weight != 1 and unconditional is None:
        raise ValueError(f"unconditional must be given for guidance {sampler.guidance}, got None")


def check_sampler(sampler: SamplerConfig, diffusion: DiffusionConfig) -> None:
    """Raise ValueError unless a sampler fits a denoiser: its prediction, and the times that it was trained at."""
    is_flow = diffusion.prediction == "flow"
    if sampler.sampler == "flow" and not is_flow:
        raise ValueError(f"sampler must not be 'flow' for a denoiser that predicts {diffusion.prediction!r}")
    if diffusion.first:
        last = float(Solver(replace(sampler, sampler="flow") if is_flow else sampler, diffusion).times.min())
        if last < diffusion.first:
            raise ValueError(
                f"sampler must call the denoiser at times of at least {diffusion.first}, where it was trained, got "
                f"{sampler.steps} steps of {sampler.sampler}, the last at {last:g}"
            )


class Solver:
    """A scheduler of diffusers, set up for a sampler.

    times: The times at which it calls the denoiser, from noise to latents, [steps].
    eta: The amount of noise that it adds at each step.
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
        with warnings.catch_warnings():  # diffusers converts tensors to NumPy in a deprecated way
            warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
            self._scheduler.set_timesteps(sampler.steps)
        if sampler.sampler == "dpm++" and sampler.official:
            whole = [*self._scheduler.timesteps, 0]
            kept = self._scheduler.alphas_cumprod[torch.tensor(whole)]
            self._scheduler.sigmas = ((1 - kept) / kept).sqrt()
        self.times: Tensor = self._scheduler.timesteps

    def step(self, prediction: Tensor, t: Tensor, x: Tensor, noise: Tensor | None) -> Tensor:
        """Take latents [M, L] from the time `t` to the next one; `noise` [M, L], is scaled by eta."""
        if noise is None:
            result: Tensor = self._scheduler.step(prediction, t, x).prev_sample
        else:
            result = self._scheduler.step(prediction, t, x, eta=self.eta, variance_noise=noise).prev_sample
        return result


def keep_known_latents(diffusion: Diffusion, latents: SparseTensor, mask: Tensor, noise: Tensor) -> Hook:
    """Make a hook for inpainting: known latents are kept, and the sampler finds others that fit.

    This is RePaint (Lugmayr et al. 2022, arXiv:2201.09865); its jumps back in time are `SamplerConfig.repeats`.

    Args:
        diffusion: The diffusion process that the denoiser was trained with.
        latents: Known latents, scaled as those of the denoiser, [M, L]; those of unknown voxels are ignored.
        mask: Which latents are known, bool [M].
        noise: Noise that is added to the known latents at each step, [M, L].

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
        raise ValueError(f"{name} must have features {list(shape)}, got {list(values.shape)}")
    return values
