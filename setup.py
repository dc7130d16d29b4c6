"""Thin: hands torch's and Python's paths to CMake and ninja. Sources and flags are in CMakeLists.txt."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import torch
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from torch.utils import cpp_extension

ROOT = Path(__file__).parent.resolve()

# Every GPU the kernels run on: 8.x, 9.0, 10.x and, from the last one's PTX, newer ones. "" builds no CUDA library.
CUDA_ARCHITECTURES = "80;90a;100"


class CMakeBuild(build_ext):
    """Runs CMake once per extension and writes the torch version it was built for beside the library."""

    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name)).parent.resolve()
        output.mkdir(parents=True, exist_ok=True)
        sanitize = os.environ.get("TILEWRIGHT_SANITIZE", "0") == "1"
        tag = f"{sysconfig.get_config_var('SOABI')}-torch{torch.__version__}" + ("-sanitize" if sanitize else "")
        build = ROOT / "build" / f"cmake-{tag}"
        architectures = os.environ.get("TILEWRIGHT_CUDA_ARCHITECTURES", CUDA_ARCHITECTURES)
        if not architectures:
            (output / "_cuda.so").unlink(missing_ok=True)  # of an earlier build
        definitions = {
            "TILEWRIGHT_TORCH_INCLUDES": ";".join(cpp_extension.include_paths()),
            "TILEWRIGHT_TORCH_LIBRARY_DIR": ";".join(cpp_extension.library_paths()),
            "TILEWRIGHT_TORCH_VERSION": torch.__version__,
            "TILEWRIGHT_CXX11_ABI": str(int(torch._C._GLIBCXX_USE_CXX11_ABI)),
            "TILEWRIGHT_PYTHON_INCLUDE": sysconfig.get_path("include"),
            "TILEWRIGHT_EXTENSION_SUFFIX": sysconfig.get_config_var("EXT_SUFFIX"),
            "TILEWRIGHT_OUTPUT_DIR": str(output),
            "TILEWRIGHT_SANITIZE": str(int(sanitize)),
            "TILEWRIGHT_CUDA_ARCHITECTURES": architectures,
        }
        arguments = [f"-D{name}={value}" for name, value in definitions.items()]
        # CMake and ninja may be installed beside a Python that is not on the path, nvcc where CUDA's installer puts it.
        places = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin"]
        environment = {**os.environ, "PATH": os.pathsep.join(places)}
        cmake = shutil.which("cmake", path=environment["PATH"]) or "cmake"
        subprocess.check_call([cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja", *arguments], env=environment)
        subprocess.check_call([cmake, "--build", str(build)], env=environment)
        (output / "_build.py").write_text(
            '"""Written by setup.py: what the extension beside this file was built for."""\n\n'
            f'TORCH_VERSION = "{torch.__version__}"\nPYTHON_VERSION = "{sys.version.split()[0]}"\n'
            f'CUDA_ARCHITECTURES = "{architectures if (output / "_cuda.so").exists() else ""}"\n'
        )

    def copy_extensions_to_source(self) -> None:
        """Editable installs: the facts and the CUDA library travel with the extension."""
        super().copy_extensions_to_source()
        built, package = Path(self.build_lib) / "tilewright", ROOT / "python" / "tilewright"
        (package / "_build.py").write_text((built / "_build.py").read_text())
        (package / "_cuda.so").unlink(missing_ok=True)
        if (built / "_cuda.so").exists():
            shutil.copy2(built / "_cuda.so", package / "_cuda.so")


setup(ext_modules=[Extension("tilewright._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
