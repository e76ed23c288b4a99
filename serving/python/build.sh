#!/usr/bin/env bash
# Builds the Python module and its wheel, and installs both into a virtual environment with all they need:
#   serving/python/build.sh [VENV]     default: build/python-venv
# Needs root or sudo if Debian packages are missing (deploy/packages-python.txt), and PyPI. Prints the wheel's path.
# Exit code 75 if PyPI cannot be reached.
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=$(realpath -m "${1:-build/python-venv}")
binaries=$PWD/build/release

deploy/install.sh deploy/packages-python.txt
[ -x "$venv/bin/python" ] || /usr/bin/python3 -m venv "$venv"
if ! "$venv/bin/pip" install -q --disable-pip-version-check -r serving/python/requirements.txt >&2; then
  "$venv/bin/pip" download -q --disable-pip-version-check --no-deps -d "$(mktemp -d)" wheel >/dev/null 2>&1 ||
    { echo "build: PyPI cannot be reached" >&2; exit 75; }
  exit 1
fi

launcher=(); command -v ccache >/dev/null && launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
export CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=1
mkdir -p "$binaries"
log=$binaries/python.log
# The option is taken back at the end, so that a build without PyPI stays possible in the same folder.
trap '[ ! -e "$binaries/CMakeCache.txt" ] || cmake --preset release -DBACKSTORY_PYTHON=OFF >"$log.off"' EXIT
cmake --preset release "${launcher[@]}" -DBACKSTORY_PYTHON=ON -DPYBIND11_FINDPYTHON=ON -DPython_EXECUTABLE="$venv/bin/python" \
  -Dpybind11_DIR="$("$venv/bin/python" -m pybind11 --cmakedir)" \
  -DBACKSTORY_ARROW_INCLUDE="$("$venv/bin/python" -c 'import pyarrow; print(pyarrow.get_include())')" \
  >"$log" || { cat "$log" >&2; exit 1; }
cmake --build --preset release --target backstory_python --parallel "$(nproc)" >>"$log" 2>&1 ||
  { grep -E -A12 'error|FAILED' "$log" | head -60 >&2; exit 1; }

# Built from a copy, so that the source tree stays as it is.
scratch=$(mktemp -d)
cp -r serving/python/pyproject.toml serving/python/setup.py serving/python/backstory_engine "$scratch"
rm -f build/python-wheel/*.whl
BACKSTORY_BINARY_DIR=$binaries "$venv/bin/pip" wheel -q --disable-pip-version-check --no-deps --no-build-isolation \
  -w build/python-wheel "$scratch" >&2
rm -rf "$scratch"
"$venv/bin/pip" install -q --disable-pip-version-check --no-deps --force-reinstall build/python-wheel/backstory_engine-*.whl >&2
ls "$PWD"/build/python-wheel/*.whl
