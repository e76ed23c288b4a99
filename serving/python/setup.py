"""Packs the module that CMake built (build.sh) with its Python. The wheel runs where the same Debian libraries are."""
import os
import pathlib
import shutil

import setuptools
from setuptools.command.build_py import build_py

HERE = pathlib.Path(__file__).resolve().parent


class WithModule(build_py):
    def run(self):
        super().run()
        built = pathlib.Path(os.environ["BACKSTORY_BINARY_DIR"]) / "python/backstory_engine"
        (module,) = built.glob("_native*.so")
        shutil.copy2(module, pathlib.Path(self.build_lib) / "backstory_engine" / module.name)


class Platform(setuptools.Distribution):
    def has_ext_modules(self):
        return True


setuptools.setup(cmdclass={"build_py": WithModule}, distclass=Platform)
