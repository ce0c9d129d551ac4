"""The command `xcube`: `pip install 'sparsevox[xcube]'`.

Every subcommand is a function that returns the exit status. jsonargparse makes its options from the signature and its
help from the docstring.
"""

import inspect
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from xcube.commands.captions import make_captions
from xcube.commands.complete import complete
from xcube.commands.convert import convert
from xcube.commands.data import build_files, build_procedural, build_scenes, build_shapes, print_credits
from xcube.commands.demo import demo
from xcube.commands.edit import edit
from xcube.commands.evaluate import evaluate
from xcube.commands.list_types import Integers, Names, Numbers
from xcube.commands.reconstruct import reconstruct
from xcube.commands.sample import sample, upsample
from xcube.commands.train import train_all, train_denoiser, train_finetune, train_refiner, train_vae
from xcube.commands.variations import interpolate, vary
from xcube.commands.view import view
from xcube.pipeline.options import SampleOptions
from xcube.training.jobs import TRAINERS
from xcube.training.presets import PRESETS, option_names, preset_names, read_options

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

Command = Callable[..., int]
T = TypeVar("T")

# Commands, and groups of commands: the help of a group, and its commands.
COMMANDS: Mapping[str, Command | tuple[str, Mapping[str, Command]]] = {
    "data": (
        "Build datasets.",
        {
            "build": build_files,
            "procedural": build_procedural,
            "shapes": build_shapes,
            "scenes": build_scenes,
            "captions": make_captions,
            "credits": print_credits,
        },
    ),
    "train": (
        "Train networks.",
        {
            "all": train_all,
            "vae": train_vae,
            "denoiser": train_denoiser,
            "finetune": train_finetune,
            "refiner": train_refiner,
        },
    ),
    "complete": complete,
    "convert": convert,
    "demo": demo,
    "edit": edit,
    "evaluate": evaluate,
    "interpolate": interpolate,
    "reconstruct": reconstruct,
    "sample": sample,
    "upsample": upsample,
    "vary": vary,
    "view": view,
}
# Commands that take --config: a file, or the name of a preset.
CONFIGURED = (train_vae, train_refiner, train_denoiser, train_finetune)
RUN_NETWORKS = (complete, edit, evaluate, interpolate, reconstruct, sample, upsample, vary)
# Commands that take --threads, which is not an argument of their functions, and its help. `train all` has its own.
THREADED: Mapping[Command, str] = {
    **dict.fromkeys(CONFIGURED, "Number of CPU threads of each training process."),
    **dict.fromkeys(RUN_NETWORKS, "Number of CPU threads."),
    demo: "Number of CPU threads; with --train, the dataset and the training use all cores.",
}
# One, however many cores there are: sums round differently with another number of threads, so that the same seed gives
# other shapes; and several threads are faster only on a quiet machine, since those of small ops wait for each other.
DEFAULT_THREADS = 1
NAMED = ("data", "model", "out")  # are options even as first arguments; other first arguments are positional
LISTS: Mapping[Any, tuple[type, str]] = {list[Path]: (Path, "FILE"), list[str]: (str, "PART")}  # with spaces
PYTHON_ONLY = {"hooks", "conditions", "starts", "category"}  # fields of SampleOptions, which are no options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    words = _with_preset_files(sys.argv[1:] if arguments is None else arguments)
    try:
        _check_config_files(words)
        top = parser()
        options = top.instantiate(top.parse_args(words))
        chosen, found = options[options.subcommand], COMMANDS[options.subcommand]
        if isinstance(found, tuple):
            chosen, found = chosen[chosen.subcommand], found[1][chosen.subcommand]
        values = chosen.as_dict()
        with _cpu_threads(values.pop("threads")) if found in THREADED else nullcontext():
            return found(**_arguments(found, values))
    except KeyboardInterrupt:
        without = " without --restart" if "--restart" in words else ""
        sys.stderr.write(f"xcube: interrupted; run the same command{without} to continue\n")
        return 130
    except (ImportError, KeyError, OSError, ValueError) as error:
        sys.stderr.write(f"xcube: {error.args[0] if isinstance(error, KeyError) else error}\n")
        return 2


def _with_preset_files(words: Sequence[str]) -> list[str]:
    """The words of the command line, with the file of a preset in place of its name after --config."""
    files = {name: str(PRESETS / f"{name}.yaml") for name in preset_names() if not Path(name).is_file()}
    found = [f"--config={files.get(w[9:], w[9:])}" if w.startswith("--config=") else w for w in words]
    return [files.get(w, w) if n and found[n - 1] == "--config" else w for n, w in enumerate(found)]


def _check_config_files(words: Sequence[str]) -> None:
    """Raise ValueError if a file after --config has options that its command lacks, which jsonargparse ignores."""
    kind = next((kind for kind in TRAINERS if list(words[:2]) == ["train", kind]), None)
    for word, after in pairwise([*words, ""]):
        name, _, value = word.partition("=")
        file = Path(value or after)
        if kind is not None and name == "--config" and file.is_file():
            read_options(kind, file, [*option_names(kind), "threads"])


@contextmanager
def _cpu_threads(count: int | None) -> Iterator[None]:
    """Use this number of CPU threads, in this process and in those that Lightning starts.

    Raises:
        ValueError: If the number is less than 1, or null in a file.
    """
    if count is None or count < 1:
        raise ValueError(f"threads must be at least 1, got {count}")
    before, variable = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    torch.set_num_threads(count)
    os.environ["OMP_NUM_THREADS"] = str(count)  # without it, Lightning divides the cores among processes that it starts
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if variable is None:
            os.environ.pop("OMP_NUM_THREADS", None)
        else:
            os.environ["OMP_NUM_THREADS"] = variable


def parser() -> "ArgumentParser":
    """The parser of the command line.

    Raises:
        ImportError: If jsonargparse is not installed.
    """
    try:
        from jsonargparse import ArgumentParser
    except ImportError as error:
        raise ImportError("the command line needs jsonargparse: pip install 'sparsevox[xcube]'") from error
    _register_lists()
    top = ArgumentParser(prog="xcube", description="Generate 3D shapes with XCube: datasets, training and sampling.")
    commands = top.add_subcommands()
    for name, entry in COMMANDS.items():
        if isinstance(entry, tuple):
            about, group = entry
            group_parser = ArgumentParser(description=about)
            commands.add_subcommand(name, group_parser, help=about)
            verbs = group_parser.add_subcommands()
            for verb, command in group.items():
                verbs.add_subcommand(verb, command_parser(command), help=_summary(command))
        else:
            commands.add_subcommand(name, command_parser(entry), help=_summary(entry))
    return top


def command_parser(command: Command) -> "ArgumentParser":
    """A parser of the arguments of a function."""
    from docstring_parser import parse
    from jsonargparse import ArgumentParser

    made = ArgumentParser(description=parse(command.__doc__ or "").description)
    if command in CONFIGURED:
        names = ", ".join(preset_names())
        made.add_argument("--config", action="config", help=f"YAML file of options, or one of {names}.")
    first, *others = inspect.signature(command).parameters.values()
    skip: set[str | int] = set()
    if first.name not in NAMED:
        is_list = first.annotation == list[str]
        options: dict[str, Any] = {"type": str, "nargs": "+"} if is_list else {"type": first.annotation}
        made.add_argument(first.name, help=_help(command, first.name), **options)
        skip.add(first.name)
    for parameter in others:
        if parameter.annotation in LISTS:
            kind, title = LISTS[parameter.annotation]
            about = _help(command, parameter.name)
            made.add_argument(f"--{parameter.name}", type=kind, nargs="+", default=[], metavar=title, help=about)
            skip.add(parameter.name)
    flags = _flags(command)
    made.add_function_arguments(command, as_group=False, skip=skip | flags | {"options"})
    if command in THREADED:
        made.add_argument("--threads", type=int, default=DEFAULT_THREADS, help=THREADED[command])
    _add_flags(made, command, flags)
    if any(parameter.annotation is SampleOptions for parameter in others):
        flags = _flags(SampleOptions)
        made.add_class_arguments(SampleOptions, as_group=False, instantiate=False, skip=PYTHON_ONLY | flags)
        _add_flags(made, SampleOptions, flags)
    return made


def _flags(source: Callable[..., Any]) -> set[str]:
    """Names of the boolean arguments of a function or class that are off by default."""
    return {p.name for p in inspect.signature(source).parameters.values() if p.annotation is bool and not p.default}


def _add_flags(made: "ArgumentParser", source: Callable[..., Any], names: Collection[str]) -> None:
    """Add boolean options that take no value."""
    for name in sorted(names):
        made.add_argument(f"--{name}", action="store_true", help=_help(source, name))


def _help(source: Callable[..., Any], name: str) -> str:
    """The description of an argument in the docstring of a function, or of a class or its bases."""
    from docstring_parser import parse

    docs = [each.__doc__ or "" for each in (source.__mro__ if isinstance(source, type) else (source,))]
    return next(p.description or "" for doc in docs for p in parse(doc).params if p.arg_name == name)


def _summary(command: Command) -> str:
    """The first line of a docstring."""
    return inspect.cleandoc(command.__doc__ or "").partition("\n")[0]


def _arguments(command: Command, values: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a function from parsed values; options of sampling become one SampleOptions."""
    parameters = inspect.signature(command).parameters
    found = {name: value for name, value in values.items() if name in parameters}
    if "options" in parameters:
        found["options"] = SampleOptions(
            **{name: value for name, value in values.items() if name not in {*found, "config"}}
        )
    return found


def _register_lists() -> None:
    """Let options hold lists with commas: --levels 16,128,512."""
    from jsonargparse.typing import register_type

    def as_text(values: Sequence[Any]) -> str:
        return ",".join(map(str, values))

    for kind, element in ((Integers, int), (Numbers, float), (Names, str)):
        register_type(kind, as_text, partial(_as_list, kind, element))


def _as_list(kind: type[tuple[T, ...]], element: Callable[[Any], T], values: str | Sequence[Any]) -> tuple[T, ...]:
    """The elements of a text with commas, or of a sequence."""
    return kind(map(element, filter(None, values.split(",")) if isinstance(values, str) else values))


if __name__ == "__main__":
    sys.exit(main())
