"""All networks of a cascade, trained side by side: `xcube train all`."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from xcube.data.dataset import read_card
from xcube.data.engines import cores
from xcube.networks.pretrained import WEIGHTS, digest
from xcube.training.jobs import Part, minutes_of, read_preset, ready
from xcube.training.status import Status
from xcube.training.workers import Done, Failed, Job, Message, Worker, messages, workers

BAR = "{desc:<20} {percentage:3.0f}% |{bar}| {postfix}"
SHOWN = ("loss", "iou")  # of the metrics of a validation


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
) -> dict[str, dict[str, float]]:
    """Train all networks of a cascade, or go on with them: of each level the VAE, the denoiser and what repairs.

    Parts that do not wait for each other are trained at the same time, each in its own folder, vae-0, denoiser-0 and
    so on: out is then the folder of a pipeline. A part whose VAE has changed since is trained anew.

    Args:
        data: Folder of a data set, as xcube data makes them.
        out: Folder of the networks.
        preset: One of the package, demo or small, or a folder of options: vae-0.yaml, denoiser-0.yaml and so on.
        minutes: How long the steps of all parts may take; they grow and shrink with it. By default as the preset says.
            To begin, to encode shapes and to validate takes about a minute more.
        processes: How many are at work; by default as many as there are levels, and one on a single core.
        threads: Of each process; by default they share the cores.
        seed: Of weights, order and noise of all parts.
        restart: Begin anew, whatever is in the folder.
        quiet: Show nothing.

    Returns:
        The metrics of each part by its name: steps, seconds, and the last validation.

    Raises:
        FileNotFoundError: If there is no such data set or preset.
        ChildProcessError: If a process dies, or fails in a way that nobody foresaw.
        ValueError: If the preset does not fit the data, or a folder holds something damaged, another network, or a run
            with other options; the message names the part.
    """
    read_card(data)
    parts = [part.seeded(seed) for part in read_preset(preset)]
    count = min(cores(), len({part.level for part in parts})) if processes is None else processes
    if count < 1:
        raise ValueError(f"processes must be at least 1, got {processes}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    if minutes is not None:
        parts = within(parts, minutes, count)
    with workers(count, threads or max(1, cores() // count)) as made, Display(count, quiet) as display:
        metrics = _trained(parts, data, out, made, display, restart)
    return {part.name: metrics[part.name] for part in parts}


def within(parts: Sequence[Part], minutes: float, processes: int) -> list[Part]:
    """Parts that take so many minutes in all.

    Raises:
        ValueError: If a part has no limit to scale, or there is no time.
    """
    whole = minutes_of(parts, processes)
    if whole is None:
        raise ValueError("minutes scale those of a preset, and this one has some part without train.minutes")
    if not minutes > 0:
        raise ValueError(f"minutes must be positive, got {minutes}")
    return [part.scaled(minutes / whole) for part in parts]


def _trained(
    parts: Sequence[Part], data: Path, out: Path, made: Sequence[Worker], display: "Display", restart: bool
) -> dict[str, dict[str, float]]:
    """Figures of all parts, trained by these processes."""
    done: dict[str, dict[str, float]] = {}
    begun: set[str] = set()
    while len(done) < len(parts):
        for worker in made:
            part = ready(parts, done, begun) if worker.job is None else None
            if part is not None:
                begun.add(part.name)
                worker.begin(Job(part, data, out, restart or _outdated(part, out)))
        for number, name, message in messages(made):
            if isinstance(message, Failed):
                raise type(message.error)(f"{name}: {message.error}")
            if isinstance(message, Done):
                done[name] = dict(message.metrics)
            display.show(number, name, message)
    return done


def _outdated(part: Part, out: Path) -> bool:
    """Whether there is a run of a part that began with another VAE."""
    from xcube.training.run_folder import trained_with  # slow to import

    before = trained_with(out / part.name)
    return part.needs is not None and before not in (None, digest(out / part.needs / WEIGHTS))


class Display:
    """A bar for each process, with the time that is left to its part, and a line for each part that is done."""

    def __init__(self, processes: int, quiet: bool) -> None:
        self.quiet = quiet
        # Without a terminal there are no bars.
        self.bars = [
            tqdm(position=n, leave=False, bar_format=BAR, disable=True if quiet else None) for n in range(processes)
        ]

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *_: object) -> None:
        for bar in reversed(self.bars):
            bar.close()

    def show(self, number: int, name: str, message: Message) -> None:
        """Show what a process says of a part."""
        if isinstance(message, Done) and not self.quiet:
            tqdm.write(f"{name:<12} {told(message.metrics)}", file=sys.stdout)
        bar = self.bars[number]
        if bar.disable or not isinstance(message, Status):
            return
        doing = "" if message.doing == "train" else f" {message.doing}"
        bar.n, bar.total = message.done, message.total
        bar.set_description(name + doing, refresh=False)
        loss = "" if message.loss is None else f"loss {message.loss:.3f}, "
        bar.set_postfix_str(f"{loss}{bar.format_interval(message.left)} left")


def told(metrics: Mapping[str, float]) -> str:
    """Figures of a part in a line."""
    shown = [f"{metrics['steps']:,.0f} steps in {metrics['seconds']:,.0f} s"]
    return ", ".join(shown + [f"{name} {metrics[name]:.3f}" for name in SHOWN if name in metrics])
