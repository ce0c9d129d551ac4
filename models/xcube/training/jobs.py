"""The networks of a cascade as training jobs: their dependencies, order and total time."""

import heapq
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from xcube.training import train
from xcube.training.config import TrainConfig
from xcube.training.process import NetworkMetrics
from xcube.training.train_finetune import train_finetune

# "finetune" is a denoiser that is trained further; all others are kinds of networks.
NetworkKind = Literal["vae", "denoiser", "finetune", "refiner"]
TRAINERS: dict[NetworkKind, Callable[..., Any]] = {
    "vae": train.train_vae,
    "denoiser": train.train_denoiser,
    "finetune": train_finetune,
    "refiner": train.train_refiner,
}
WARMUP_FRACTION = 0.2  # maximum fraction of the steps of a scaled job for warm-up


@dataclass(frozen=True)
class TrainingJob:
    """One network of a cascade to train.

    kind: Kind of the network.
    level: Level of the cascade; 0 is the coarsest.
    train: Optimization.
    options: Further arguments of the function in `TRAINERS`, by name.
    """

    kind: NetworkKind
    level: int
    train: TrainConfig
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of its folder, such as denoiser-0, where the pipeline looks for it."""
        return f"{self.kind}-{self.level}"

    @property
    def inputs(self) -> dict[str, str]:
        """The trained networks that it takes: names of the jobs that must finish first, by argument of its function.

        Fine-tuning takes the denoisers of its own and of the coarser level as they are before any fine-tuning.
        """
        here, coarser = self.level, self.level - 1
        if self.kind == "vae":
            return {}
        if self.kind != "finetune":
            return {"vae": f"vae-{here}"}
        own = {"vae": f"vae-{here}", "denoiser": f"denoiser-{here}"}
        return own | {"coarse_vae": f"vae-{coarser}", "coarse_denoiser": f"denoiser-{coarser}"}

    @property
    def minutes(self) -> float:
        """The time limit in minutes; for a job without one, an estimate by which jobs are ordered."""
        return self.train.steps / 100 if self.train.minutes is None else self.train.minutes

    def with_seed(self, seed: int) -> "TrainingJob":
        """Return the job with `seed` added to that of the preset."""
        return replace(self, train=replace(self.train, seed=self.train.seed + seed))

    def scaled(self, factor: float) -> "TrainingJob":
        """Return the job with its steps and minutes multiplied by a factor."""
        steps = max(1, round(self.train.steps * factor))
        minutes = None if self.train.minutes is None else self.train.minutes * factor
        warmup = min(self.train.warmup, round(WARMUP_FRACTION * steps))
        every = {name: max(1, min(getattr(self.train, name), steps)) for name in ("val_every", "save_every")}
        return replace(self, train=replace(self.train, steps=steps, minutes=minutes, warmup=warmup, **every))

    def run(self, data: Path, out: Path, *, restart: bool, quiet: bool) -> NetworkMetrics:
        """Train the network in the subfolder `name` of `out` and return its metrics."""
        from xcube.training.run_folder import read_metrics  # imports Lightning, which is slow

        inputs = {argument: out / name for argument, name in self.inputs.items()}
        common = {"level": self.level, "train": self.train, "restart": restart, "quiet": quiet}
        TRAINERS[self.kind](data, out / self.name, **inputs, **common, **self.options)
        return read_metrics(out / self.name)


def next_job(jobs: Sequence[TrainingJob], done: Collection[str], started: Collection[str]) -> TrainingJob | None:
    """Return the job to start next, None if all others wait: the one that begins the longest remaining chain."""
    done = set(done)
    ready = [job for job in jobs if job.name not in started and done.issuperset(job.inputs.values())]

    def chain(job: TrainingJob) -> float:
        after = (other for other in jobs if job.name in other.inputs.values())
        return job.minutes + max(map(chain, after), default=0.0)

    return max(ready, key=chain, default=None)


def total_minutes(jobs: Sequence[TrainingJob], processes: int) -> float | None:
    """Return how long the jobs take by their time limits with this many processes; None if one has no limit."""
    if any(job.train.minutes is None for job in jobs):
        return None
    now, done, started = 0.0, set[str](), set[str]()
    running: list[tuple[float, str]] = []  # a heap of the end and the name of each job
    while len(done) < len(jobs):
        while len(running) < processes and (job := next_job(jobs, done, started)) is not None:
            started.add(job.name)
            heapq.heappush(running, (now + job.minutes, job.name))
        now, name = heapq.heappop(running)
        done.add(name)
    return now


def scaled_to(jobs: Sequence[TrainingJob], minutes: float, processes: int) -> list[TrainingJob]:
    """Scale jobs so that they take `minutes` in all with this many processes.

    Raises:
        ValueError: If a job has no time limit, or `minutes` is not positive.
    """
    total = total_minutes(jobs, processes)
    if total is None:
        raise ValueError("minutes needs a preset in which every network has train.minutes, got one without")
    if not minutes > 0:
        raise ValueError(f"minutes must be positive, got {minutes}")
    return [job.scaled(minutes / total) for job in jobs]
