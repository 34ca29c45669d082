"""Drives CMake and installs what it builds as nnops._C. No compiler flag lives here."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()

OLDEST_TORCH = (2, 10)

# What the environment may say to CMake: cmake/cuda.cmake explains both.
CMAKE_OPTIONS = ("NNOPS_CUDA", "NNOPS_CUDA_ARCHS")

# Said here, before pip looks at the dependencies: pip must never fetch another torch by itself.
try:
    import torch
except ImportError:
    sys.exit(
        "nnops is compiled against the torch that you already have: install torch, setuptools, "
        "pybind11, cmake and ninja, then type 'pip install --no-build-isolation .'"
    )
if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST_TORCH:
    sys.exit(
        f"nnops needs torch {'.'.join(map(str, OLDEST_TORCH))} or later, but this Python has torch "
        f"{torch.__version__}: upgrade torch, then type 'pip install --no-build-isolation .'"
    )


class CMakeBuild(build_ext):
    """Configures, builds and installs the one CMake project."""

    def build_extension(self, ext: Extension) -> None:
        destination = Path(self.get_ext_fullpath(ext.name)).resolve().parent.parent
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        configure = [
            f"-S{ROOT}",
            f"-B{build}",
            "-GNinja",
            f"-DPython_EXECUTABLE={sys.executable}",
            *(f"-D{name}={os.environ[name]}" for name in CMAKE_OPTIONS if name in os.environ),
            *os.environ.get("NNOPS_CMAKE_ARGS", "").split(),
        ]
        cmake(*configure)
        cmake("--build", build)
        cmake("--install", build, "--prefix", destination, "--strip")


def cmake(*arguments: str | Path) -> None:
    """Runs cmake; the one that pip installed beside this Python wins, activated or not."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    program = shutil.which("cmake", path=path)
    if program is None:
        sys.exit("nnops is built with CMake, which was not found: type 'pip install cmake ninja'")
    subprocess.run([program, *arguments], check=True, env={**os.environ, "PATH": path})


setup(ext_modules=[Extension("nnops._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
