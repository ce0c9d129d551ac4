"""The command `xcube`: `pip install 'sparsevox[xcube]'`.

Every subcommand is a function that returns the exit status. jsonargparse makes its options from the signature and its
help from the docstring.
"""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xcube.commands.data import build_files, build_parts, build_scenes
from xcube.commands.demo import demo
from xcube.commands.evaluate import evaluate
from xcube.commands.models import convert, reconstruct, train_all, train_denoiser, train_refiner, train_vae
from xcube.commands.options import Integers, Names, Numbers
from xcube.commands.sample import sample, upsample
from xcube.commands.view import view
from xcube.training.jobs import PRESETS, presets

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

Function = Callable[..., int]

# Subcommands, and groups of them: what a group is for, and its functions.
COMMANDS: Mapping[str, Function | tuple[str, Mapping[str, Function]]] = {
    "data": ("data sets", {"build": build_files, "parts": build_parts, "scenes": build_scenes}),
    "train": ("networks", {"all": train_all, "vae": train_vae, "denoiser": train_denoiser, "refiner": train_refiner}),
    "convert": convert,
    "demo": demo,
    "evaluate": evaluate,
    "reconstruct": reconstruct,
    "sample": sample,
    "upsample": upsample,
    "view": view,
}
CONFIGURED = (train_vae, train_refiner, train_denoiser)  # they take --config, a file or the name of a preset
OPTIONS = ("data", "model", "out")  # what is given by name, though it comes first


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    words = _with_presets(_apart(sys.argv[1:] if arguments is None else arguments))
    try:
        _check_files(words)
        options = parser().parse_args(words)
        chosen, found = options[options.subcommand], COMMANDS[options.subcommand]
        if isinstance(found, tuple):
            chosen, found = chosen[chosen.subcommand], found[1][chosen.subcommand]
        return found(**{name: value for name, value in _made(chosen, found).items() if name != "config"})
    except KeyboardInterrupt:
        without = " without --restart" if "--restart" in words else ""
        sys.stderr.write(f"xcube: interrupted; the same command{without} goes on\n")
        return 130
    except (ImportError, KeyError, OSError, ValueError) as error:
        sys.stderr.write(f"xcube: {error.args[0] if isinstance(error, KeyError) else error}\n")
        return 2


def _apart(words: Sequence[str]) -> list[str]:
    """`--config=FILE` in two words, as it is looked for."""
    return [part for word in words for part in (word.split("=", 1) if word.startswith("--config=") else [word])]


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
    top = ArgumentParser(prog="xcube", description="XCube: data sets and models of sparse voxels.")
    commands = top.add_subcommands()
    for name, entry in COMMANDS.items():
        if isinstance(entry, tuple):
            about, functions = entry
            group = ArgumentParser(description=about)
            commands.add_subcommand(name, group, help=about)
            verbs = group.add_subcommands()
            for verb, function in functions.items():
                made, summary = _of_function(function)
                verbs.add_subcommand(verb, made, help=summary)
        else:
            made, summary = _of_function(entry)
            commands.add_subcommand(name, made, help=summary)
    return top


def _of_function(function: Function) -> "tuple[ArgumentParser, str]":
    """A parser of the arguments of a function, and in a line what it does."""
    import docstring_parser
    from jsonargparse import ArgumentParser

    doc = docstring_parser.parse(function.__doc__ or "")
    about = {each.arg_name: each.description for each in doc.params}
    first, *others = inspect.signature(function).parameters.values()
    made = ArgumentParser(description=doc.description)
    flags = [each.name for each in others if each.annotation is bool and each.default is False]
    files = [each.name for each in others if each.annotation == list[Path]]
    skip: set[str | int] = {*flags, *files}
    for name in flags:
        made.add_argument(f"--{name}", action="store_true", help=about[name])
    for name in files:
        made.add_argument(f"--{name}", type=Path, nargs="+", default=[], metavar="FILE", help=about[name])
    if first.name not in OPTIONS:
        many = first.annotation == list[str]
        made.add_argument(first.name, type=str if many else first.annotation, help=about[first.name], **_number(many))
        skip.add(first.name)
    if function in CONFIGURED:
        names = ", ".join(presets())
        made.add_argument("--config", action="config", help=f"a YAML file with options, or one of {names}")
    made.add_function_arguments(function, as_group=False, skip=skip)
    return made, doc.short_description or ""


def _number(many: bool) -> dict[str, Any]:
    return {"nargs": "+"} if many else {}


def _made(chosen: Any, function: Function) -> dict[str, Any]:
    """Arguments of a function, with objects in place of the options that describe them."""
    parameters = inspect.signature(function).parameters
    values: dict[str, Any] = {}
    for name, value in vars(chosen).items():
        hint = parameters[name].annotation if name in parameters else None
        described = hasattr(hint, "from_dict") and hasattr(value, "as_dict")
        values[name] = hint.from_dict(value.as_dict()) if described and hint is not None else value
    return values


def _with_presets(words: list[str]) -> list[str]:
    """The name of a preset after `--config` becomes its file, unless there is a file of that name."""
    names = presets()
    for n, word in enumerate(words[1:], 1):
        if words[n - 1] == "--config" and word in names and not Path(word).is_file():
            words[n] = str(PRESETS / f"{word}.yaml")
    return words


def _check_files(words: list[str]) -> None:
    """Raise ValueError if a file after --config has an option that its command has not; the parser lets some pass."""
    import yaml

    entry = COMMANDS.get(words[0]) if words else None
    found = entry[1].get(words[1]) if isinstance(entry, tuple) and len(words) > 1 else None
    for option, file in pairwise(words):
        if found is None or option != "--config" or not Path(file).is_file():
            continue
        try:
            values = yaml.safe_load(Path(file).read_text()) or {}
        except (UnicodeDecodeError, yaml.YAMLError) as error:
            raise ValueError(f"{file} is no YAML: {error}") from error
        parameters = inspect.signature(found).parameters
        if not isinstance(values, dict) or not values.keys() <= parameters.keys():
            unknown = sorted(values.keys() - parameters.keys()) if isinstance(values, dict) else values
            raise ValueError(f"{file} must have options among {', '.join(parameters)}, got {unknown}")
        for name, value in values.items():
            hint = parameters[name].annotation
            if isinstance(value, dict) and hasattr(hint, "from_dict"):
                known = {field.name for field in fields(hint)}
                unknown = sorted(value.keys() - known)
                if unknown:
                    raise ValueError(f"{file}: options of {name} must be of {', '.join(sorted(known))}, got {unknown}")


def _register_lists() -> None:
    from jsonargparse.typing import register_type

    def as_text(values: Sequence[Any]) -> str:
        return ",".join(map(str, values))

    register_type(Integers, as_text, lambda text: Integers(map(int, text.split(","))))
    register_type(Numbers, as_text, lambda text: Numbers(map(float, text.split(","))))
    register_type(Names, as_text, lambda text: Names(filter(None, text.split(","))))


if __name__ == "__main__":
    sys.exit(main())
