"""Atomic writes."""

import pytest

from sparsevox.files import atomic_write


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "a.bin"
    with atomic_write(path) as file:
        file.write(b"half")
        file.flush()
        assert not path.exists()
        (part,) = tmp_path.iterdir()
        assert part.name.startswith(".")
        assert part.name.endswith(".part")
    assert path.read_bytes() == b"half"


def test_an_interrupt_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"half")

    def interrupted() -> None:
        with atomic_write(path) as file:
            file.write(b"other")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"half"
    assert list(tmp_path.iterdir()) == [path]


def test_links_stay_links_and_permissions_are_the_usual_ones(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with atomic_write(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"
    (tmp_path / "plain").touch()
    assert (tmp_path / "real").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_paths_that_cannot_be_written(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"), atomic_write(tmp_path / "none" / "a"):
        pass
    with pytest.raises(IsADirectoryError, match="path must name a file"), atomic_write(tmp_path):
        pass
