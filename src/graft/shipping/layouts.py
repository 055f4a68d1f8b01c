"""The layouts of an export by name: how each is checked, written, and read again.

A new layout is a writer, a reader (`readback`) and one entry in LAYOUTS.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from graft.errors import UsageError
from graft.formats.int4 import FORMATS
from graft.shipping import adapter, classifier, four_bit, gguf, instructions, readback, vllm
from graft.shipping.certificate import Reading
from graft.shipping.hf import write_model
from graft.shipping.merge_ways import minima_hold
from graft.shipping.origin import Origin

if TYPE_CHECKING:
    from graft.base.base import Base


@dataclass(frozen=True)
class Settings:
    """How an export is to be written.

    name: what the folder will be called.  adapter: the name of a chosen adapter, or None.
    file_type: of a GGUF file's matrices, None for the usual one.
    into: how adapters were merged into a quantised base (`merge_ways`).
    origin: the run that it comes from.  headed: the adapter whose task head goes along.
    """

    name: str
    adapter: str | None = None
    file_type: str | None = None
    into: str | None = None
    origin: Origin | None = None
    headed: str | None = None


def _refuse_file_type(base: "Base", settings: Settings) -> None:
    if settings.file_type is not None:
        raise UsageError(f"type={settings.file_type!r}", "to='gguf' with it", "leave type out")


def _unpacks(base: "Base", names: Sequence[str], settings: Settings) -> bool:
    return False


@dataclass(frozen=True)
class Layout:
    """One layout.

    write: (base, empty folder, settings) -> names of the packed layers that were written unpacked. The base
    has all adapters merged, or none if `adapter_alone`.
    read: (folder, base) -> a context that gives the folder as its program sees it.
    check: raises UsageError, before the work, for a base or settings that the layout cannot take.
    holds: whether the layout keeps packed layers as they are, with the changes of these adapters.
    adapter_alone: an adapter is written, not a model.  rounds: zero points are whole, so nothing is exact.
    """

    write: Callable[["Base", Path, Settings], list[str]]
    read: Callable[[Path, "Base"], AbstractContextManager[Reading]]
    check: Callable[["Base", Settings], None] = _refuse_file_type
    holds: Callable[["Base", Sequence[str], Settings], bool] = _unpacks
    adapter_alone: bool = False
    rounds: bool = False


def _write_hf(base: "Base", folder: Path, settings: Settings) -> list[str]:
    if settings.headed is not None:
        return classifier.write_classifier(base, folder, settings.headed, settings.name, settings.origin)
    unpacked = write_model(base, folder, packed=settings.into == "packed")
    instructions.write_model(base, folder, settings.name, settings.origin)
    return unpacked


def _write_gguf(base: "Base", folder: Path, settings: Settings) -> list[str]:
    unpacked, file = gguf.write_gguf(base, folder, settings.file_type or gguf.usual_type(base))
    instructions.write_gguf(base, folder, file, settings.origin)
    return unpacked


def _check_gguf(base: "Base", settings: Settings) -> None:
    gguf.check(base, settings.file_type or gguf.usual_type(base))


def _gguf_holds(base: "Base", names: Sequence[str], settings: Settings) -> bool:
    return gguf.holds(base, settings.file_type) and (not names or minima_hold(base, names))


def _write_bnb(base: "Base", folder: Path, settings: Settings) -> list[str]:
    return four_bit.write_bnb(base, folder, settings.name, settings.origin)


def _check_bnb(base: "Base", settings: Settings) -> None:
    _refuse_file_type(base, settings)
    four_bit.check_bnb(base, settings.into or "packed")


def _bnb_holds(base: "Base", names: Sequence[str], settings: Settings) -> bool:
    return True


def _whole_zero_points(to: str) -> Layout:
    def write(base: "Base", folder: Path, settings: Settings) -> list[str]:
        return four_bit.write_whole(base, folder, settings.name, to, settings.origin)

    return Layout(write, readback.packed, rounds=True)


def _write_peft(base: "Base", folder: Path, settings: Settings) -> list[str]:
    adapter.write_peft(base, folder, str(settings.adapter), settings.name, settings.origin)
    return []


def _check_peft(base: "Base", settings: Settings) -> None:
    _refuse_file_type(base, settings)
    adapter.check_peft(base, str(settings.adapter))


def _write_vllm(base: "Base", folder: Path, settings: Settings) -> list[str]:
    vllm.write(base, folder, str(settings.adapter), settings.name, settings.origin)
    return []


def _check_vllm(base: "Base", settings: Settings) -> None:
    _refuse_file_type(base, settings)
    vllm.check(base, str(settings.adapter))


def _write_gguf_lora(base: "Base", folder: Path, settings: Settings) -> list[str]:
    adapter.write_gguf_lora(base, folder, str(settings.adapter), settings.origin)
    return []


LAYOUTS: dict[str, Layout] = {
    "hf": Layout(_write_hf, readback.model),
    "gguf": Layout(_write_gguf, readback.gguf, _check_gguf, _gguf_holds),
    "bnb": Layout(_write_bnb, readback.model, _check_bnb, _bnb_holds),
    **{to: _whole_zero_points(to) for to in FORMATS},
    "peft": Layout(_write_peft, readback.adapter, _check_peft, adapter_alone=True),
    "vllm": Layout(_write_vllm, readback.rewritten, _check_vllm, adapter_alone=True),
    "gguf-lora": Layout(_write_gguf_lora, readback.gguf_lora, adapter_alone=True),
}
