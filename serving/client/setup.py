"""Copies what the wheel carries from its one source in the tree: the wire schema (as a descriptor set) and the service config.

Needs `protoc` (Debian: protobuf-compiler). Nothing is generated as code: messages are made from the descriptor set at
run time, so that one wheel works with every protobuf runtime.
"""
import pathlib
import shutil
import subprocess

import setuptools
from setuptools.command.build_py import build_py

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]


class BuildWithSchema(build_py):
    def run(self):
        package = HERE / "backstory"
        protos = sorted(str(p.relative_to(ROOT / "proto")) for p in (ROOT / "proto/backstory/v1").glob("*.proto"))
        subprocess.run(["protoc", f"-I{ROOT / 'proto'}", "--include_imports",
                        f"--descriptor_set_out={package / 'backstory.protoset'}", *protos],
                       cwd=ROOT / "proto", check=True)
        shutil.copyfile(ROOT / "deploy/client_service_config.json", package / "service_config.json")
        super().run()


setuptools.setup(cmdclass={"build_py": BuildWithSchema})
