"""How well shapes follow their captions: `python -m bench.text --judge judge --picture assets/text.png`.

A judge, a small convolutional network, learns to tell the facts of procedural shapes (kind, arms, legs, ...) from their
voxels. It is trained on shapes of seeds that no dataset has, so that the model never saw them. Then captions of further
such shapes are made, and shapes are generated from the captions. The table has the fraction of the facts mentioned by a
caption that the judge finds:

- in the shapes that the captions were made of ("real"), and in the generated ones;
- in the same shapes with the captions of others, of the same family or of any: chance.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bench.pictures import draw_rows
from sparsevox import Voxels
from xcube.data.hierarchy import Box
from xcube.pipeline.options import SampleOptions
from xcube.pipeline.pipeline import XCubePipeline
from xcube.procedural.captions import FACTS, caption
from xcube.procedural.shapes import FAMILIES, make_shape, shape_voxels

HEAD = """\
| shapes | guidance | facts found | with captions of other shapes of the family | with captions of any other shape | \
family found | seconds per shape |
|---|--:|--:|--:|--:|--:|--:|"""
EDGE = 64
FIRST = {"train": 850_000, "test": 890_000, "captions": 895_000}  # seeds of the split "val" that no dataset reaches
EPOCHS, BATCH, RATE = 6, 32, 2e-3
EXAMPLES = (
    "a wide armchair with thin legs",
    "a round table with a central column",
    "a bunk bed",
    "a corner sofa",
    "a floor lamp with legs",
    "a fighter jet with delta wings",
    "a pickup truck",
    "a narrow wardrobe with legs",
)


class Judged(NamedTuple):
    """Procedural shapes for the judge.

    volumes: Their voxels, as bits: uint8 [n, EDGE^3 / 8].
    facts: The facts of each, with its family.
    """

    volumes: np.ndarray
    facts: list[dict[str, str]]


def heads() -> dict[tuple[str, str], list[str]]:
    """The values of every fact that the judge tells apart, by family and name; the family itself is ("", "family")."""
    found = {("", "family"): list(FAMILIES)}
    return found | {(f, name): list(values) for f in FACTS for name, values in FACTS[f].items() if len(values) > 1}


def volume(voxels: Voxels) -> np.ndarray:
    """The voxels of a shape as bits."""
    full = np.zeros((EDGE,) * 3, dtype=bool)
    i, j, k = (voxels.grid.ijk.numpy() + EDGE // 2).T
    full[i, j, k] = True
    return np.packbits(full)


def judged(kind: str, count: int, folder: Path) -> Judged:
    """Make shapes for the judge, or load them from a folder."""
    names = [(f, FIRST[kind] + n) for n in range(-(-count // len(FAMILIES))) for f in FAMILIES][:count]
    facts = [{"family": f} | dict(make_shape(f, seed).facts) for f, seed in names]
    file = folder / f"{kind}-{count}.npy"
    if not file.is_file():
        box = Box((16, EDGE))
        folder.mkdir(parents=True, exist_ok=True)
        np.save(file, np.stack([volume(shape_voxels(f"{f}-{seed:06}", box)) for f, seed in names]))
    return Judged(np.load(file), facts)


class Judge(torch.nn.Module):
    """Predicts the facts of shapes from their voxels."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 16, 32, 64, 96)
        layers: list[torch.nn.Module] = []
        for before, after in pairwise(widths):
            layers += [torch.nn.Conv3d(before, after, 3, 2, 1), torch.nn.BatchNorm3d(after), torch.nn.ReLU()]
        self.features = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Dropout(0.2))
        size = widths[-1] * (EDGE >> (len(widths) - 1)) ** 3
        self.kinds = heads()
        self.outs = torch.nn.ModuleList(torch.nn.Linear(size, len(values)) for values in self.kinds.values())

    def forward(self, bits: np.ndarray) -> list[Tensor]:
        """Logits [n, values] of each fact, from the voxels of shapes as bits."""
        full = np.unpackbits(bits, axis=1).reshape(-1, 1, EDGE, EDGE, EDGE)
        features = self.features(torch.from_numpy(full).float())
        return [out(features) for out in self.outs]

    def targets(self, facts: Sequence[Mapping[str, str]]) -> list[Tensor]:
        """The number of the value of each fact [n]; -1 where a shape does not have it."""
        made = []
        for (family, name), values in self.kinds.items():
            found = [one.get(name) if family in ("", one["family"]) else None for one in facts]
            made.append(torch.tensor([-1 if value is None else values.index(value) for value in found]))
        return made

    @torch.no_grad()
    def answers(self, bits: np.ndarray) -> list[dict[tuple[str, str], str]]:
        """The value of each fact that the judge sees in shapes, one after the other."""
        self.eval()
        logits = [torch.cat(parts) for parts in zip(*(self(part) for part in _parts(bits)), strict=True)]
        chosen = [out.argmax(1).tolist() for out in logits]
        pairs = list(zip(self.kinds.items(), chosen, strict=True))
        return [{kind: values[rows[n]] for (kind, values), rows in pairs} for n in range(len(bits))]


def _parts(bits: np.ndarray) -> list[np.ndarray]:
    return [bits[start : start + BATCH] for start in range(0, len(bits), BATCH)]


def trained_judge(folder: Path, count: int, tests: int) -> Judge:
    """Train the judge, or load it from a folder, and print how often it is right about shapes that it has not seen."""
    torch.manual_seed(0)
    judge, file = Judge(), folder / f"judge-{count}.pt"
    if file.is_file():
        judge.load_state_dict(torch.load(file, weights_only=True))
    else:
        shapes = judged("train", count, folder)
        targets = judge.targets(shapes.facts)
        optimizer = torch.optim.AdamW(judge.parameters(), lr=RATE, weight_decay=0.01)
        steps = EPOCHS * (count // BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps)
        for step in range(steps):
            if step % (count // BATCH) == 0:
                order = torch.randperm(count)
                judge.train()
            rows = order[step % (count // BATCH) * BATCH :][:BATCH]
            logits = judge(shapes.volumes[rows.numpy()])
            parts = [
                functional.cross_entropy(out, target[rows], ignore_index=-1, reduction="sum")
                for out, target in zip(logits, targets, strict=True)
            ]
            loss = torch.stack(parts).sum() / BATCH
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        torch.save(judge.state_dict(), file)
    shapes = judged("test", tests, folder)
    answers, right, all_facts = judge.answers(shapes.volumes), 0, 0
    for facts, answer in zip(shapes.facts, answers, strict=True):
        known = agreements({name: facts[name] for name in facts if name != "family"}, facts["family"], answer)
        right, all_facts = right + sum(known), all_facts + len(known)
    print(f"The judge finds {100 * right / all_facts:.1f} % of the facts of {tests} other shapes.\n", flush=True)
    return judge


def agreements(facts: Mapping[str, str], family: str, answer: Mapping[tuple[str, str], str]) -> list[bool]:
    """Whether the judge finds each of some facts of a family in a shape. In one of another family it finds none."""
    right = answer["", "family"] == family
    return [right and answer[family, name] == value for name, value in facts.items() if (family, name) in answer]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    about = "Measure how well generated shapes follow their captions."
    parser = argparse.ArgumentParser("python -m bench.text", description=about)
    add = parser.add_argument
    add("--model", type=Path, help="folder of a pipeline (default: the model in the package)")
    add("--judge", type=Path, required=True, help="folder that keeps the judge and its shapes")
    add("--shapes", type=int, default=6000, help="number of shapes that the judge is trained on (default: 6000)")
    add("--tests", type=int, default=400, help="number of shapes that the judge is tested on (default: 400)")
    add("--count", type=int, default=256, help="number of captions (default: 256)")
    add("--seeds", type=int, nargs="+", default=[0], help="seeds of the samples (default: 0)")
    add("--guidance", type=float, nargs="+", default=[1.0, 2.0, 3.0], help="weights of guidance (default: 1 2 3)")
    add("--threads", type=int, default=1, help="number of CPU threads (default: 1)")
    add("--picture", type=Path, help="PNG file for a picture of shapes with their captions")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Train the judge, generate, measure, print and draw."""
    chosen = parse(arguments)
    torch.set_num_threads(chosen.threads)
    judge = trained_judge(chosen.judge, chosen.shapes, chosen.tests)
    real = judged("captions", chosen.count, chosen.judge)
    families = [facts["family"] for facts in real.facts]
    known = [{name: value for name, value in facts.items() if name != "family"} for facts in real.facts]
    captions = [caption(f, facts, n) for n, (f, facts) in enumerate(zip(families, known, strict=True))]
    print(HEAD)
    row = columns([c.facts for c in captions], families, judge.answers(real.volumes))
    print(f"| real | | {row} | |", flush=True)
    pipeline = XCubePipeline.from_pretrained(chosen.model, resolution=EDGE)
    for seed in chosen.seeds:
        for guidance in chosen.guidance:
            options = SampleOptions(seed=seed, quiet=True, guidance=guidance)
            start = time.perf_counter()
            made = pipeline.sample(len(captions), options, text=[c.text for c in captions])
            seconds = (time.perf_counter() - start) / len(made)
            answers = judge.answers(np.stack([volume(sample.finest) for sample in made]))
            row = columns([c.facts for c in captions], families, answers)
            print(f"| generated, seed {seed} | {guidance:g} | {row} | {seconds:.2f} |", flush=True)
    if chosen.picture is not None:
        options = SampleOptions(seed=chosen.seeds[0], quiet=True, guidance=chosen.guidance[-1])
        shapes = pipeline.sample(len(EXAMPLES), options, text=EXAMPLES)
        draw_rows({text: each.finest for text, each in zip(EXAMPLES, shapes, strict=True)}, 4, chosen.picture)
    return 0


def columns(
    facts: Sequence[Mapping[str, str]], families: Sequence[str], answers: Sequence[Mapping[tuple[str, str], str]]
) -> str:
    """Columns of the table: the facts found with the right captions, and with those of others."""
    count = len(facts)
    pairs = {
        "own": [(n, n) for n in range(count)],
        "family": _others(families),
        "any": list(enumerate(random.Random(0).sample(range(count), count))),
    }
    parts = []
    for chosen in pairs.values():  # of a shape and a caption
        found = [each for n, m in chosen for each in agreements(facts[m], families[m], answers[n])]
        parts.append(statistics.fmean(found))
    parts.append(statistics.fmean(answer["", "family"] == f for answer, f in zip(answers, families, strict=True)))
    return " | ".join(f"{100 * part:.1f} %" for part in parts)


def _others(families: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of a shape and another one of its family."""
    by_family = {f: [n for n, other in enumerate(families) if other == f] for f in set(families)}
    return [(n, m) for some in by_family.values() for n, m in zip(some, some[1:] + some[:1], strict=True) if n != m]


if __name__ == "__main__":
    sys.exit(main())
