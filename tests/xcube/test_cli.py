"""The command line."""

import functools
import inspect
import os
import shlex
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from xcube.cli import COMMANDS, PYTHON_ONLY, THREADED, command_parser, main
from xcube.data import ShapeFolder
from xcube.data.dataset import read_card

pytest.importorskip("jsonargparse", reason="the command line")
pytest.importorskip("tqdm", reason="its progress bar")


@pytest.fixture
def voxels(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(4):
        ijk = np.unique(np.random.default_rng(number).integers(4, 12, (20, 3)), axis=0)
        np.savez(tmp_path / "in" / f"{number}.npz", ijk=ijk, label=np.arange(len(ijk)))
    return tmp_path


def run(voxels, *others):
    shared = ("--out", str(voxels / "out"), "--layout", "voxels", "--workers", "0")
    return main(["data", "build", str(voxels / "in"), *shared, *others])


def test_build(voxels, capsys):
    options = ("--levels", "4,16", "--attributes", "label", "--splits", '{"train": 0.5, "test": 0.5}', "--seed", "3")
    assert run(voxels, *options, "--license", "CC0", "--source", "dice") == 0
    assert capsys.readouterr().out == "4 shapes built, 0 skipped\n"
    card = read_card(voxels / "out")
    assert (card.license, card.source, card.box.levels, list(card.attributes)) == ("CC0", "dice", (4, 16), ["label"])
    assert card.options == {
        "samples": 1_000_000,
        "seed": 3,
        "outside": "error",
        "splits": {"train": 0.5, "test": 0.5},
    }
    assert len(ShapeFolder(voxels / "out", None)) == 4
    assert run(voxels, *options, "--license", "CC0", "--source", "dice") == 0
    assert capsys.readouterr().out == "0 shapes built, 4 already existed, 0 skipped\n"


def test_what_is_left_out_is_counted_and_nothing_is_an_error(voxels, capsys):
    assert run(voxels, "--levels", "4,8", "--attributes", "label") == 1
    assert capsys.readouterr().out == (
        f"0 shapes built, 4 skipped\n  4 out of the box\n{voxels / 'out' / 'report.csv'} lists the skipped shapes\n"
    )


def test_other_options_need_overwrite(voxels, capsys):
    assert run(voxels, "--levels", "4,16", "--attributes", "label") == 0
    assert run(voxels, "--levels", "8,16", "--attributes", "label") == 2
    assert "xcube: a dataset must be resumed with its own options, but levels" in capsys.readouterr().err
    assert run(voxels, "--levels", "8,16", "--attributes", "label", "--overwrite") == 0
    assert read_card(voxels / "out").box.levels == (8, 16)


def test_lists(voxels, tmp_path):
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "train.lst").write_text("2\n3\n")
    assert run(voxels, "--levels", "16", "--attributes", "label", "--lists", str(tmp_path / "lists")) == 0
    assert [entry.name for entry in ShapeFolder(voxels / "out").entries] == ["2", "3"]


def test_a_box_that_is_no_cube(voxels):
    assert run(voxels, "--levels", "16", "--size", "2,2,4", "--attributes", "label", "--outside", "clip") == 0
    assert read_card(voxels / "out").box.size == (2.0, 2.0, 4.0)


@pytest.mark.parametrize("layout", ["files", "shapenet", "semantic-kitti"])
def test_layouts_look_for_their_own_files(tmp_path, capsys, layout):
    assert main(["data", "build", str(tmp_path), "--out", str(tmp_path / "out"), "--layout", layout]) == 2
    assert capsys.readouterr().err.startswith("xcube: ")
    assert not (tmp_path / "out").exists()


def test_one_folder_with_a_layout(voxels, capsys):
    assert main(["data", "build", "a", "b", "--out", str(voxels / "out"), "--layout", "shapenet"]) == 2
    assert capsys.readouterr().err == "xcube: shapes must be one folder with layout 'shapenet', got 2 paths\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "subcommand"),
        (["data"], "subcommand"),
        (["data", "build", "x"], "out"),
        (["data", "build", "x", "--out", "y", "--levels", "16,x"], "levels"),
        (["data", "build", "x", "--out", "y", "--engine", "dask"], "engine"),
        (["data", "build", "x", "--out", "y", "--outside", "cut"], "outside"),
        (["data", "build", "--out", "y"], "shapes"),
    ],
)
def test_bad_command_lines(capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def functions():
    for name, entry in COMMANDS.items():
        verbs = entry[1] if isinstance(entry, tuple) else {"": entry}
        yield from (pytest.param(function, id=f"{name} {verb}".strip()) for verb, function in verbs.items())


@pytest.mark.parametrize("function", list(functions()))
def test_the_defaults_of_options_are_those_of_python(function):
    defaults = command_parser(function).get_defaults()
    for name, parameter in inspect.signature(function).parameters.items():
        if name == "options":
            expected = {n: v for n, v in vars(parameter.default).items() if n not in PYTHON_ONLY}
            assert {n: defaults[n] for n in expected} == expected
        elif parameter.default is not parameter.empty:
            found = defaults[name]
            found = found.as_dict() if hasattr(found, "as_dict") else found
            expected = parameter.default.__dict__ if hasattr(parameter.default, "to_dict") else parameter.default
            assert found == expected, name


def test_help_says_what_every_option_is(capsys):
    words = [
        [name, *([verb] if verb else [])]
        for name, e in COMMANDS.items()
        for verb in (e[1] if isinstance(e, tuple) else [""])
    ]
    assert len(words) >= 8
    for command in words:
        with pytest.raises(SystemExit) as caught:
            main([*command, "--help"])
        assert caught.value.code == 0
        text = capsys.readouterr().out
        options = text.partition("options:")[2].split("\n  --")[1:]
        assert options
        for option in options:
            described = option.partition("(")[0].split()
            assert len(described) > 2, f"{command} --{option}"


# Words that each command with --threads needs.
WORDS = {
    "train vae": ["--data", "x", "--out", "y"],
    "train denoiser": ["--data", "x", "--out", "y", "--vae", "z"],
    "train refiner": ["--data", "x", "--out", "y", "--vae", "z"],
    "train finetune": shlex.split("--data x --out y --vae z --denoiser z --coarse_vae z --coarse_denoiser z"),
    "complete": ["x"],
    "demo": [],
    "edit": ["x", "--delete", "y"],
    "evaluate": ["x", "--data", "y"],
    "interpolate": ["x", "--to", "y"],
    "reconstruct": ["x", "--model", "y"],
    "sample": ["--model", "x"],
    "upsample": ["x", "--model", "y"],
    "vary": ["x"],
}


@pytest.fixture(params=list(WORDS))
def spied(request, monkeypatch):
    """The words of a command, and a list of the threads of PyTorch and of Lightning's processes in each call of it."""
    name, _, verb = request.param.partition(" ")
    group: Any = COMMANDS
    if verb:
        group, name = group[name][1], verb
    calls, command = [], group[name]

    @functools.wraps(command)
    def spy(*_, **__):
        calls.append((torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]))
        return 0

    monkeypatch.setitem(group, name, spy)
    monkeypatch.setitem(THREADED, spy, THREADED[command])
    return [*request.param.split(), *WORDS[request.param]], calls


def test_a_command_has_the_threads_that_it_is_given_or_one(spied, monkeypatch):
    words, calls = spied
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert main(words) == 0
        monkeypatch.setenv("OMP_NUM_THREADS", "4")
        assert main([*words, "--threads", "2"]) == 0
        assert calls == [(1, "1"), (2, "2")]
        assert (torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]) == (3, "4")  # those of a caller stay
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("count", ["0", "-2"])
def test_fewer_than_one_thread_are_refused_before_the_command_runs(spied, capsys, count):
    words, calls = spied
    assert main([*words, "--threads", count]) == 2
    assert capsys.readouterr().err == f"xcube: threads must be at least 1, got {count}\n"
    assert not calls


def test_threads_are_a_number(spied, capsys):
    words, calls = spied
    with pytest.raises(SystemExit) as caught:
        main([*words, "--threads", "many"])
    assert caught.value.code == 2
    assert "threads" in capsys.readouterr().err
    assert not calls


def test_every_command_that_runs_networks_takes_threads():
    named = {function.id: function.values[0] for function in functions()}
    assert {name for name, function in named.items() if function in THREADED} == set(WORDS)
    others = {name for name in set(named) - set(WORDS) if "threads" in command_parser(named[name]).get_defaults()}
    assert others == {"train all"}  # as an argument of its function


def test_a_file_without_a_number_of_threads_is_refused(tmp_path, capsys):
    (tmp_path / "options.yaml").write_text("threads: null")
    words = ["train", "vae", "--data", "x", "--out", str(tmp_path / "out"), "--config", str(tmp_path / "options.yaml")]
    assert main(words) == 2
    assert "threads must be at least 1, got None" in capsys.readouterr().err


def test_threads_of_a_file(tmp_path, monkeypatch, capsys):
    """That of --print_config holds all options."""
    with pytest.raises(SystemExit):
        main(["train", "vae", "--data", "x", "--out", str(tmp_path / "out"), "--print_config"])
    values = yaml.safe_load(capsys.readouterr().out)
    assert values["threads"] == 1
    (tmp_path / "options.yaml").write_text(yaml.safe_dump(values | {"threads": 2}))

    def read_card(_):
        raise ValueError(f"{torch.get_num_threads()} threads")

    monkeypatch.setattr("xcube.training.checks.read_card", read_card)
    for words, threads in (([], 2), (["--threads", "3"], 3)):
        assert main(["train", "vae", "--config", str(tmp_path / "options.yaml"), *words]) == 2
        assert capsys.readouterr().err == f"xcube: {threads} threads\n"


def test_as_a_program(voxels):
    command = [sys.executable, "-m", "xcube.cli", "data", "build", str(voxels / "in"), "--out", str(voxels / "out")]
    options = ["--layout", "voxels", "--levels", "16", "--attributes", "label", "--workers", "0"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "4 shapes built, 0 skipped\n", "")


def test_without_jsonargparse(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    assert main([]) == 2
    assert "the command line needs jsonargparse: pip install 'sparsevox[xcube]'" in capsys.readouterr().err
