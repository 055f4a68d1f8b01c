"""The command line when the system refuses: what stands in the way is named, before the work, no defect."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from graft.cli import VERBS, _defect, call
from graft.cli.say import UNREAD, talk

# Of each verb that writes: the words that write to a path, folder or file.
FOLDERS = {
    "train": lambda out: ["train", "--model", "seedling", "--data", "seedling:descriptions", "--output", out],
    "export": lambda out: ["export", "seedling", out],
    "export gguf": lambda out: ["export", "seedling", out, "--to", "gguf", "--force"],
    "quantize": lambda out: ["quantize", "seedling", out],
    "merge": lambda out: ["merge", "seedling", out],
    "convert": lambda out: ["convert", "seedling", out, "--base", "seedling"],
    "demo": lambda out: ["demo", "--folder", out],
    "methods": lambda out: ["methods", "--write", out],
    "studio": lambda out: ["studio", "--port", "0", "--runs", out],
}
FILES = {
    "judge": lambda out: ["judge", "a.jsonl", "b.jsonl", "--by", "rule:shorter", "--out", out],
    "data convert": lambda out: ["data", "convert", "rows.jsonl", f"{out}.jsonl", "--to", "sft"],
    "ask": lambda out: ["ask", "rows.jsonl", "--adapters", ".", "--out", out],
    "compare": lambda out: ["compare", "a", "b", "--csv", out],
    "runs": lambda out: ["runs", ".", "--csv", out],
    "rank csv": lambda out: ["rank", "j.jsonl", "--csv", out],
    "rank page": lambda out: ["rank", "j.jsonl", "--page", out],
    "serve": lambda out: ["serve", "seedling", "--port", "0", "--log", out],
    "studio votes": lambda out: ["studio", "--port", "0", "--votes", out],
}
DOORS = FOLDERS | FILES
WAYS = ("below a file", "below a dangling link", "name too long", "in a place that cannot be written")


def blocked(home, way):
    """A path that cannot be written, and a word that the error must hold."""
    (home / "mine").write_text("mine")
    (home / "link").symlink_to(home / "nowhere")
    return {
        "below a file": (home / "mine" / "deep" / "out", str(home / "mine")),
        "below a dangling link": (home / "link" / "out", str(home / "nowhere")),
        "name too long": (home / ("x" * 300), "255"),
        "in a place that cannot be written": ("/proc/graft/out", "/proc/graft/out"),
    }[way]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("door", DOORS)
def test_d24_an_output_that_cannot_be_written_is_named_at_once(door, way, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, word = blocked(tmp_path, way)
    before = sorted(tmp_path.rglob("*"))
    assert call(DOORS[door](str(path))) in (1, 2)
    said = capsys.readouterr().err
    assert word in said and "to do:" in said and "bug in Graft" not in said
    assert sorted(tmp_path.rglob("*")) == before and (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize("door", FOLDERS)
def test_d24_an_output_that_is_a_file_is_refused(door, tmp_path, capsys):
    path = tmp_path / "out"
    path.write_text("mine")
    if "--force" in (words := FOLDERS[door](str(path))):
        words.remove("--force")
    assert call(words) == 2
    assert f"{path}" in capsys.readouterr().err and path.read_text() == "mine"


def test_d24_no_torch_is_imported_before_an_output_is_looked_at(tmp_path):
    (tmp_path / "mine").write_text("mine")
    words = [door(str(tmp_path / "mine" / "out")) for door in DOORS.values()]
    code = f"""
import sys
from graft.cli import call
for words in {words!r}:
    assert call(words) == 2, words
    assert "torch" not in sys.modules, words
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "code"),
    [
        *((name, 1) for name in ("EIO", "EACCES", "EPERM", "EROFS", "ENOTDIR", "EISDIR", "EEXIST", "ENOENT")),
        *((name, 1) for name in ("ENAMETOOLONG", "ELOOP", "EMFILE", "ENOMEM", "ESTALE", "EBUSY")),
        *((name, 74) for name in ("ENOSPC", "EDQUOT", "EFBIG")),
    ],
)
def test_d24_an_errno_in_a_command_is_told_with_its_path_and_code(name, code, tmp_path, capsys, monkeypatch):
    def refuse(*arguments):
        raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)), str(tmp_path / "out.csv"))

    monkeypatch.setattr("graft.cli.rank.require_file", refuse)
    assert call(["rank", "j.jsonl", "--csv", "out.csv"]) == code
    said = capsys.readouterr().err
    assert os.strerror(getattr(errno, name)) in said and "to do:" in said and "bug in Graft" not in said
    assert name == "ENOMEM" or str(tmp_path / "out.csv") in said


@pytest.mark.parametrize(
    "error", [MemoryError(), Exception("No space left on device"), RuntimeError("bad_alloc")]
)
def test_d23_errors_without_a_number_of_their_own_are_told_as_well(error, capsys, monkeypatch):
    def refuse(*arguments):
        raise error

    monkeypatch.setattr("graft.cli.rank.require_file", refuse)
    assert call(["rank", "j.jsonl", "--csv", "out.csv"]) in (1, 74)
    assert "bug in Graft" not in capsys.readouterr().err


def test_what_is_no_error_of_the_system_stays_a_defect(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    def fail(*arguments):
        raise KeyError("x")

    monkeypatch.setattr("graft.cli.rank.require_file", fail)
    assert call(["rank", "j.jsonl", "--csv", "out.csv"]) == 70
    assert "This is a bug in Graft" in capsys.readouterr().err


@pytest.mark.parametrize(
    "trouble", [FileNotFoundError(2, "No usable temporary directory"), OSError(28, "full")]
)
def test_d26_a_defect_is_told_where_no_temporary_file_can_be_made(trouble, capsys, monkeypatch):
    def refuse(**keywords):
        raise trouble

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    assert _defect(KeyError("strange")) == 70
    said = capsys.readouterr().err
    assert "KeyError: 'strange'" in said and trouble.strerror in said and "bug in Graft" in said


def test_d26_the_traceback_itself_is_on_the_screen_then(tmp_path):
    code = "from graft.cli import call\nimport graft.cli.rank as r\nr.require_file = lambda p: 1 // 0\n"
    code += "import sys; sys.exit(call(['rank', 'j', '--csv', 'x']))"
    settings = {**os.environ, "TMPDIR": str(tmp_path / "none"), "TEMP": "", "TMP": ""}
    patch = "import tempfile; tempfile._candidate_tempdir_list = lambda: ['/proc/none']\n"
    done = subprocess.run([sys.executable, "-c", patch + code], capture_output=True, text=True, env=settings)
    assert done.returncode == 70
    assert "in rank\n" in done.stderr and done.stderr.endswith("division or modulo by zero\n")


def piped(words, stream="stdout"):
    """The exit code and the other stream of a command whose reader of this stream has gone away."""
    read, write = os.pipe()
    os.close(read)
    other = "stderr" if stream == "stdout" else "stdout"
    code = f"import sys; sys.argv = ['graft', *{words!r}]\nfrom graft.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], **{stream: write, other: subprocess.PIPE}, text=True, timeout=120
    )
    os.close(write)
    return done.returncode, getattr(done, other)


def test_a_reader_that_goes_away_ends_the_command_without_a_word():
    assert piped(["methods", "--json"]) == (UNREAD, "")


def test_messages_that_nobody_reads_stop_nothing():
    code, out = piped(["methods"], stream="stderr")
    assert code == 0 and "lora" in out


def test_an_output_to_a_full_disk_exits_74():
    with open("/dev/full", "w") as full:
        code = "import sys; sys.argv = ['graft', 'methods']\nfrom graft.cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, timeout=120
        )
    assert done.returncode == 74 and "standard output" in done.stderr and "Traceback" not in done.stderr


def test_a_closed_stderr_is_no_reason_to_write_into_the_answer(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    talk("a message")
    monkeypatch.undo()
    assert capsys.readouterr().out == ""


def test_every_verb_that_writes_is_among_the_doors():
    source = {verb.__name__.rpartition(".")[2]: Path(verb.__file__).read_text() for verb in VERBS}
    checking = {name for name, text in source.items() if "refuse_occupied" in text or "require_" in text}
    assert {door.partition(" ")[0] for door in DOORS} - {"data"} == checking - {"benchmarks", "chat"}


def test_a_cache_that_cannot_be_written_is_told_before_torch(tmp_path):
    (tmp_path / "file").write_text("mine")
    words = ["train", "--model", "seedling", "--data", "seedling:shelves", "stage=classify"]
    code = f"""
import sys
from graft.cli import call
assert call({words!r}) == 2
assert "torch" not in sys.modules
"""
    settings = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "file")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=settings
    )
    assert done.returncode == 0, done.stderr
    assert "seedling:shelves" in done.stderr and "XDG_CACHE_HOME" in done.stderr
