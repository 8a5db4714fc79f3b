"""Builds the native CPU kernels; everything else of the build is in pyproject.toml."""

from __future__ import annotations

import platform
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

SOURCES = Path("kernels/luma_kernels/cpu/src")
HEADERS = sorted(map(str, SOURCES.glob("*.h")))

# Contraction is off and nothing may reorder, so that all instruction sets compute the same bits;
# neither errno nor floating-point traps are looked at, which would keep loops from vectorising.
FLAGS = [
    "-std=c++17",
    "-O3",
    "-g0",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
]
X86_BUILDS = {
    "generic": [],
    "avx2": ["-mavx2"],
    "avx512": [
        "-mavx512f",
        "-mavx512bw",
        "-mavx512dq",
        "-mavx512vl",
        "-mprefer-vector-width=512",
    ],
}


class BuildNative(build_ext):
    """Compiles the kernels once per instruction set into one library without Python's ABI."""

    def get_ext_filename(self, fullname: str) -> str:
        """Return a name that is the same for every Python: the library is loaded by ctypes."""
        return str(Path(*fullname.split(".")).with_suffix(".so"))

    def build_extension(self, ext: Extension) -> None:
        """Compile and link, with OpenMP where the compiler has it, and else with threads."""
        try:
            self._build(ext, ["-fopenmp"])
        except (CompileError, LinkError):
            self._build(ext, ["-pthread"])

    def _build(self, ext: Extension, threading: list[str]) -> None:
        x86 = platform.machine() in ("x86_64", "AMD64")
        macros = [("LUMA_X86", "1")] if x86 else []
        objects = self._compile("library.cpp", "library", macros, threading)
        for name, flags in (X86_BUILDS if x86 else {"generic": []}).items():
            objects += self._compile("kernels.cpp", name, [*macros, ("LUMA_ISA", name)], flags)
        self.compiler.link_shared_object(
            objects,
            self.get_ext_fullpath(ext.name),
            extra_postargs=threading,
            target_lang="c++",
        )

    def _compile(
        self, source: str, name: str, macros: list[tuple[str, str]], flags: list[str]
    ) -> list[str]:
        objects: list[str] = self.compiler.compile(
            [str(SOURCES / source)],
            output_dir=str(Path(self.build_temp, name)),
            macros=macros,
            depends=HEADERS,
            extra_postargs=[*FLAGS, *flags],
        )
        return objects


class PlatformWheel(bdist_wheel):
    """Tags the wheel for this platform and for every Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return interpreter, ABI and platform."""
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[
        Extension(
            "luma_kernels.cpu._native",
            [str(SOURCES / "library.cpp"), str(SOURCES / "kernels.cpp")],
            depends=HEADERS,
            language="c++",
            # Without a compiler the package installs all the same, and steps run in PyTorch.
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": PlatformWheel},
)
