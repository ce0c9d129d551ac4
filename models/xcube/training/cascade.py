"""Training of a whole cascade: `xcube train all`."""

from functools import partial
from multiprocessing.connection import wait
from pathlib import Path

from xcube.data.dataset import read_card
from xcube.data.engines import cores
from xcube.networks.pretrained import WEIGHTS, digest
from xcube.training.jobs import TrainingJob, next_job, scaled_to
from xcube.training.presets import read_preset
from xcube.training.process import NetworkMetrics, TrainingProcess, print_line, stop

PRINTED = ("loss", "iou")  # of the metrics of a validation


def train_all(
    data: Path,
    out: Path,
    preset: str = "demo",
    minutes: float | None = None,
    processes: int | None = None,
    threads: int | None = None,
    seed: int = 0,
    restart: bool = False,
    quiet: bool = False,
) -> dict[str, NetworkMetrics]:
    """Train all networks of a cascade, or resume: for each level the VAE, the denoiser and, if any, the others.

    Networks that do not depend on each other are trained in parallel. Each is written to a subfolder (vae-0, denoiser-0
    and so on), so that `xcube sample` can load the output folder. The same command resumes after an interruption. A
    network is trained from scratch if a network that it depends on has changed.

    Args:
        data: Folder of a dataset made by `xcube data`.
        out: Output folder of the networks.
        preset: Name of a preset such as demo or small, or a folder with vae-0.yaml, denoiser-0.yaml and so on.
        minutes: Time limit for training all networks, in minutes; numbers of steps are scaled to it. The default is the
            limit of the preset. Start-up, encoding and validation take about one minute more.
        processes: Number of networks to train in parallel; by default one per level, at most one per core.
        threads: Number of CPU threads of each process; by default the cores are divided among the processes.
        seed: Random seed of the weights, the order of shapes and the noise of all networks.
        restart: Train from scratch, even if the folder holds runs.
        quiet: Hide the progress.

    Returns:
        The metrics of each network by its name: "steps", "seconds", and the metrics of the last validation.

    Raises:
        FileNotFoundError: If there is no such dataset or preset.
        ChildProcessError: If a training process dies; the message names the network.
        RuntimeError: If training fails with an unexpected error; the message names the network.
        ValueError: If the preset does not fit the data, or a folder holds a damaged file, another network, or a run
            with other options; the message names the network.
    """
    read_card(data)
    jobs = [job.with_seed(seed) for job in read_preset(preset)]
    size = min(cores(), len({job.level for job in jobs})) if processes is None else processes
    if size < 1:
        raise ValueError(f"processes must be at least 1, got {processes}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    if minutes is not None:
        jobs = scaled_to(jobs, minutes, size)
    threads = threads or max(1, cores() // size)

    metrics: dict[str, NetworkMetrics] = {}
    started: set[str] = set()
    pool: list[TrainingProcess] = []
    try:
        for line in range(size):
            pool.append(TrainingProcess(threads, line))
        while len(metrics) < len(jobs):
            # 1. Give idle processes networks whose inputs are trained.
            for process in (process for process in pool if process.name is None):
                if (job := next_job(jobs, metrics, started)) is not None:
                    again = restart or _inputs_changed(job, out)
                    process.start(job.name, partial(job.run, data, out, restart=again, quiet=quiet))
                    started.add(job.name)
            # 2. Wait for the next network that is trained.
            ready = wait([process.connection for process in pool if process.name is not None])
            for process in pool:
                if process.connection in ready:
                    name = str(process.name)
                    metrics[name] = process.result()
                    if not quiet:
                        print_line(f"{name:<12} {summary(metrics[name])}")
    finally:
        stop(pool)
    return {job.name: metrics[job.name] for job in jobs}


def summary(metrics: NetworkMetrics) -> str:
    """The metrics of a network in one line."""
    parts = [f"{metrics['steps']:,.0f} steps in {metrics['seconds']:,.0f} s"]
    return ", ".join(parts + [f"{name} {metrics[name]:.3f}" for name in PRINTED if name in metrics])


def _inputs_changed(job: TrainingJob, out: Path) -> bool:
    """Whether the folder of a job holds a run that began with other networks."""
    from xcube.training.run_folder import input_digests  # imports Lightning, which is slow

    before = input_digests(out / job.name, job.inputs)
    return any(digest(out / job.inputs[argument] / WEIGHTS) != value for argument, value in before.items())
