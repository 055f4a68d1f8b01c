"""What is committed under src/graft is in the wheel, and a stranger needs nothing else."""

import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def committed(folder):
    """Paths below a folder of the checkout that git knows."""
    done = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True)
    if done.returncode or not done.stdout:
        pytest.skip("no checkout of git")
    return [Path(line) for line in done.stdout.splitlines()]


def test_every_committed_file_of_the_package_is_in_the_wheel():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["graft"]
    left = []
    for path in committed("src/graft"):
        inside = path.relative_to("src/graft")
        code = path.suffix == ".py"  # setuptools finds folders without __init__.py, too
        if not code and not any(fnmatch(inside.as_posix(), pattern) for pattern in patterns):
            left.append(inside.as_posix())
    assert not left


def test_the_source_archive_has_what_builds_the_kernels():
    manifest = (ROOT / "MANIFEST.in").read_text().split("\n")
    assert "recursive-include csrc *.c *.h" in manifest
    assert {path.suffix for path in committed("csrc") if path.parent == Path("csrc")} <= {".c", ".h"}
    assert (ROOT / "LICENSE").exists() and (ROOT / "README.md").exists()  # setuptools takes these by itself


def test_the_metadata_says_what_is_true():
    project = PROJECT["project"]
    assert (
        f"Programming Language :: Python :: {project['requires-python'].removeprefix('>=')}"
        in (project["classifiers"])
    )
    assert project["authors"] and project["keywords"] and project["readme"] == "README.md"
    assert not any("Windows" in one or "MacOS" in one for one in project["classifiers"])  # nobody has tried


@pytest.mark.slow
def test_a_strangers_path_works_from_the_wheels_files(tmp_path):
    pytest.importorskip("gguf")
    pytest.importorskip("xllamacpp")
    words = [sys.executable, "benchmarks/stranger/run.py", "--target", "--keep", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert '"steps"' in done.stdout
