"""An output is looked at before the work: whatever stands in its way is named, and nothing is written."""

import errno
import os

import pytest

from graft import storage
from graft.errors import GraftError, MachineError, UsageError
from graft.storage import outputs, writes

CHECKS = {
    "folder": lambda path: storage.refuse_occupied(path, force=False),
    "forced": lambda path: storage.refuse_occupied(path, force=True),
    "run": storage.require_run_folder,
    "file": storage.require_file,
}


def obstacles(home):
    """Paths that cannot become an output, by what stands in the way."""
    (home / "file").write_text("mine")
    (home / "dangling").symlink_to(home / "nowhere")
    (home / "loop").symlink_to(home / "loop")
    return {
        "below a file": home / "file" / "a" / "out",
        "dangling": home / "dangling",
        "below dangling": home / "dangling" / "out",
        "loop": home / "loop",
        "below a loop": home / "loop" / "out",
        "long": home / ("x" * 256),
        "below long": home / ("x" * 100_000) / "out",
        "NUL": home / "a\0b",
        "proc": home.__class__("/proc/graft-out"),
    }


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("what", [
    "below a file", "dangling", "below dangling", "loop", "below a loop", "long", "below long", "NUL", "proc",
])  # fmt: skip
def test_d24_an_output_that_cannot_be_is_named_and_nothing_is_touched(check, what, tmp_path):
    path = obstacles(tmp_path)[what]
    before = sorted(tmp_path.iterdir())
    with pytest.raises(GraftError) as error:
        CHECKS[check](path)
    assert error.value.exit_code in (1, 2) and len(str(error.value)) < 1000
    assert sorted(tmp_path.iterdir()) == before and (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("check", ["folder", "run"])
def test_d24_a_file_is_no_folder(check, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UsageError, match=r"exists|is a file"):
        CHECKS[check](tmp_path / "out")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(UsageError, match="is a folder"):
        storage.require_file(tmp_path)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", ["EACCES", "EROFS", "EPERM", "EIO", "ENOSPC"])
def test_d24_a_place_that_refuses_is_told_with_the_path_that_was_typed(check, name, tmp_path, monkeypatch):
    number = getattr(errno, name)

    class Refusing:
        def __getattr__(self, attribute):
            return getattr(os, attribute)

        def open(self, *arguments, **keywords):
            raise OSError(number, os.strerror(number), arguments[0])

    monkeypatch.setattr(writes, "os", Refusing())
    with pytest.raises(MachineError) as error:
        CHECKS[check](tmp_path / "deep" / "out")
    assert str(tmp_path / "deep" / "out") in error.value.given and error.value.number == number
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("check", CHECKS)
def test_missing_parents_are_no_obstacle_and_are_not_made_by_looking(check, tmp_path):
    CHECKS[check](tmp_path / "a" / "b" / "out")
    assert not list(tmp_path.iterdir())


def test_a_name_of_the_greatest_length_can_be_an_output(tmp_path):
    name = "ö" * 127
    with storage.output_folder(tmp_path / name, force=False) as folder:
        storage.write(folder / "a", b"1")
    assert os.listdir(tmp_path) == [name] and len(os.fsencode(name)) <= outputs.LONGEST
    storage.replace(tmp_path / ("x" * 255), b"1")
