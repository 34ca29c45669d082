"""Drives CMake and installs what it builds as nnops._C. No compiler flag lives here."""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()

try:
    import torch  # noqa: F401
except ImportError:
    sys.exit(
        "nnops is compiled against the torch that you already have: "
        "install torch, pybind11, cmake, ninja and setuptools, then type "
        "'pip install --no-build-isolation .'"
    )


class CMakeBuild(build_ext):
    """Configures, builds and installs the one CMake project."""

    def build_extension(self, ext: Extension) -> None:
        destination = Path(self.get_ext_fullpath(ext.name)).resolve().parent.parent
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        configure = [
            "cmake",
            f"-S{ROOT}",
            f"-B{build}",
            "-GNinja",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DNNOPS_VERSION={self.distribution.get_version()}",
            *os.environ.get("NNOPS_CMAKE_ARGS", "").split(),
        ]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", build], check=True)
        subprocess.run(["cmake", "--install", build, "--prefix", destination], check=True)


setup(ext_modules=[Extension("nnops._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
