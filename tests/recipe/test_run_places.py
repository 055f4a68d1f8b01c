"""Names of files in a run's recipe are found again from another folder, and only those that lead nowhere."""

from graft import storage
from graft.recipe.places import FILE, find_again, place_of


def test_what_is_on_the_disk_is_recorded_from_the_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").touch()
    (tmp_path / "seedling").mkdir()
    assert place_of("rows.jsonl") == str(tmp_path / "rows.jsonl")
    assert place_of(["rows.jsonl", "org/name"]) == [str(tmp_path / "rows.jsonl"), "org/name"]
    assert place_of("seedling") == "seedling", "the embedded model, whatever lies here"
    assert place_of("seedling:descriptions") == "seedling:descriptions"
    assert place_of("a\0b") == "a\0b"


def test_names_that_lead_nowhere_are_replaced_and_others_stay(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    (tmp_path / "here").mkdir()
    for name in ("rows.jsonl", "more.jsonl", "test.jsonl"):
        (tmp_path / "there" / name).touch()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here" / "test.jsonl").touch()
    there = str(tmp_path / "there")
    record = {
        "path of the base": "org/name",
        "path of the training rows": [f"{there}/rows.jsonl", f"{there}/more.jsonl"],
        "path of the held-out rows": f"{there}/gone.jsonl",
        "path of the test rows": f"{there}/test.jsonl",
    }
    storage.write_record(tmp_path / FILE, record)
    data = {"train": ["rows.jsonl", "more.jsonl"], "eval": "gone.jsonl", "test": "test.jsonl"}
    settings = {"model": "org/name", "data": dict(data)}
    find_again(settings, tmp_path)
    assert settings["data"]["train"] == record["path of the training rows"]
    assert settings["data"]["eval"] == "gone.jsonl", "it is nowhere"
    assert settings["data"]["test"] == "test.jsonl", "it is here"
    assert settings["model"] == "org/name"


def test_a_damaged_or_missing_record_changes_nothing(tmp_path):
    settings = {"model": "M", "data": {"train": "rows.jsonl"}}
    find_again(settings, tmp_path)
    (tmp_path / FILE).write_text("{")
    find_again(settings, tmp_path)
    assert settings == {"model": "M", "data": {"train": "rows.jsonl"}}
