"""Exports and quantised folders on a disk that refuses: exit 74 with the bytes, and nothing half-written.

The limit on the size of files is a real one, of this process: writers in Python, Rust and C++ all meet it.
"""

import contextlib
import errno
import os
import resource

import pytest

import graft
from graft import storage
from graft.errors import MachineError, SpaceError
from graft.runs.quantise import quantise
from graft.shipping import gguf

ADAPTERS = ("peft", "vllm", "gguf-lora")


@contextlib.contextmanager
def limited(most):
    """A real limit on the size of files inside the block."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def base():
    return graft.load("seedling")


@pytest.fixture(scope="module")
def adapted():
    base = graft.load("seedling")
    base.attach("mine", graft.LoRA(r=64))
    return base


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_d22_d23_a_model_that_does_not_fit_is_told_with_its_bytes_and_leaves_nothing(to, base, tmp_path):
    with (
        limited(200_000),
        pytest.raises(SpaceError, match=r"bytes are needed, [\d,]+ bytes are free") as error,
    ):
        graft.export(base, tmp_path / "out", to)
    assert error.value.exit_code == 74 and str(tmp_path / "out") in error.value.given
    assert ".tmp" not in error.value.given and not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", ADAPTERS)
def test_d22_an_adapter_that_does_not_fit_is_told_and_leaves_nothing(to, adapted, tmp_path):
    with limited(20_000), pytest.raises(SpaceError) as error:
        graft.export(adapted, tmp_path / "out", to, adapter="mine")
    assert ".tmp" not in error.value.given and not list(tmp_path.iterdir())


def test_d23_an_adapter_is_saved_whole_or_not_at_all(adapted, tmp_path):
    with limited(20_000), pytest.raises(SpaceError):
        adapted.adapters["mine"].save(tmp_path / "out")
    assert not list(tmp_path.rglob("*.safetensors")) and not list(tmp_path.rglob(".tmp*"))


def test_d23_a_quantised_model_that_does_not_fit_is_told_with_its_bytes(tmp_path):
    with limited(100_000), pytest.raises(SpaceError, match="bytes are needed"):
        quantise("seedling", tmp_path / "out", "nf4")
    assert not list(tmp_path.iterdir())


def test_d23_a_tokenizer_that_does_not_fit_is_told(base, tmp_path, monkeypatch):
    """Its writer is in Rust, and raises a bare Exception."""
    kind = type(base.tokenizer)
    write = kind.save_pretrained

    def limited_write(tokenizer, folder, **keywords):
        with limited(2_000):
            return write(tokenizer, folder, **keywords)

    monkeypatch.setattr(kind, "save_pretrained", limited_write)
    with pytest.raises(SpaceError):
        graft.export(base, tmp_path / "out", "hf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["EIO", "EACCES", "EROFS", "EDQUOT", "ENOSPC", "EMFILE", "ESTALE"])
@pytest.mark.parametrize("to", ["gguf", "hf"])
def test_d24_each_error_of_the_system_in_an_export_is_named(to, name, base, tmp_path, monkeypatch):
    number = getattr(errno, name)

    def refuse(*arguments, **keywords):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(gguf, "_append", refuse)
    monkeypatch.setattr(type(base.model), "save_pretrained", refuse)
    with pytest.raises(MachineError) as error:
        graft.export(base, tmp_path / "out", to)
    assert error.value.number == number and str(tmp_path / "out") in error.value.given
    assert not list(tmp_path.iterdir())


def test_the_bytes_of_a_gguf_file_are_those_of_gguf_own_writer(base, tmp_path, monkeypatch):
    graft.export(base, tmp_path / "ours", "gguf")
    monkeypatch.setattr(gguf, "_append", lambda writer, tensor: writer.write_tensor_data(tensor.numpy()))
    graft.export(base, tmp_path / "theirs", "gguf")
    files = [next(folder.glob("*.gguf")) for folder in (tmp_path / "ours", tmp_path / "theirs")]
    assert storage.digest(files[0]) == storage.digest(files[1])
