"""What a run's user must know stays in its folder, also where the run is killed and goes on."""

import json

from graft.errors import notice
from graft.runs.hear import heard


def test_a_note_is_in_the_file_as_soon_as_it_is_told(tmp_path):
    told = []
    with heard(told.append) as notes:
        notice("before there is a folder")
        notes.keep_in(tmp_path / "notes.json")
        assert json.loads((tmp_path / "notes.json").read_text()) == ["before there is a folder"]
        notice("answers have shrunk")
        notice("answers have shrunk")
        assert json.loads((tmp_path / "notes.json").read_text()) == notes == told
    assert told == ["before there is a folder", "answers have shrunk"]


def test_a_run_that_goes_on_keeps_what_was_told_before_the_kill_and_tells_its_own(tmp_path):
    (tmp_path / "notes.json").write_text(json.dumps(["rows are padded", "answers have shrunk"]))
    told = []
    with heard(told.append) as notes:
        notice("rows are padded")
        notes.keep_in(tmp_path / "notes.json")
        notice("the entropy has fallen")
    assert told == ["rows are padded", "the entropy has fallen"]
    assert json.loads((tmp_path / "notes.json").read_text()) == [
        "rows are padded",
        "answers have shrunk",
        "the entropy has fallen",
    ]
