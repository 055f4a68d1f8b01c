"""Build the native kernels of csrc/ where a C compiler is; without one the package works on torch alone.

One unit per instruction-set level, each with its own flags, in one shared library with a plain C interface:
it fits every Python and every torch, so the wheel is tagged py3-none.
"""

import os
import platform
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

# No contraction: decoded weights have the reference's bits. Products ask for fused operations by name.
FLAGS = ["-O3", "-std=gnu11", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno", "-g0",
    "-Wall", "-Wextra", "-Wno-psabi"]  # fmt: skip
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"]
AVX512_BF16 = [*AVX512, "-mavx512vnni", "-mavx512bf16"]
AMX = [*AVX512_BF16, "-mamx-tile", "-mamx-bf16"]
LEVELS: dict[str, list[str]] = {"portable": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    LEVELS |= {"avx2": AVX2, "avx512": AVX512, "avx512_bf16": AVX512_BF16, "amx": AMX}
NEW = ("avx512_bf16", "amx")  # levels that a compiler of some years ago does not know
# How `make kernels` has them examined: with sanitizers, or with AVX-512 emulated by SIMD Everywhere.
WAYS = {
    "sanitized": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-O1", "-g"],
    "emulated": ["-O1"],
    "": [],
}
WAY = WAYS[os.environ.get("GRAFT_KERNELS_BUILD", "")]
if os.environ.get("GRAFT_KERNELS_BUILD") == "emulated":
    LEVELS |= {"avx512": [*AVX2, "-DEMULATE_AVX512"], "levels": ["-DEMULATE_AVX512"]}
OPENMP = [] if platform.system() == "Darwin" else ["-fopenmp"]


class Build(build_ext):
    """Compile each level with its own flags, and link them without Python."""

    def get_ext_filename(self, name: str) -> str:
        return str(Path(*name.split("."))) + ".so.1"  # Python would take .so for a module

    def build_extension(self, ext: Extension) -> None:
        objects, missing = [], []
        for source in sorted(ext.sources, key=lambda source: Path(source).stem == "levels"):
            level = Path(source).stem
            flags = FLAGS + OPENMP + LEVELS.get(level, missing) + WAY
            try:
                objects += self.compiler.compile(
                    [source], self.build_temp, extra_postargs=flags, depends=ext.depends
                )
            except CompileError:
                if level not in NEW:
                    raise
                missing.append(f"-DWITHOUT_{level.upper()}")  # which levels.c then leaves out
        self.compiler.link_shared_object(
            objects, self.get_ext_fullpath(ext.name), extra_postargs=[*OPENMP, *WAY, "-lm"]
        )


class Wheel(bdist_wheel):
    """Tag the wheel for every Python 3 of this platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[
        Extension(
            "graft.kernels.libgraft",
            sources=[f"csrc/{name}.c" for name in sorted({"levels", *LEVELS})],
            depends=[str(path) for path in sorted(Path("csrc").glob("*.h"))],
            optional=True,
        )
    ],
    cmdclass={"build_ext": Build, "bdist_wheel": Wheel},
)
