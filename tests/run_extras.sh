#!/usr/bin/env bash
# The tests that need PyPI: the Python module, Parquet and Arrow files, the Ray job, and their guide. Builds all they need
# itself (serving/python/build.sh) and closes with "N passed, N failed, N skipped". Skips, and says so, if PyPI cannot be
# reached. Exit code 0 only if nothing failed.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$PWD/build/python-venv
code=0; serving/python/build.sh "$venv" || code=$?
if [ $code = 75 ]; then
  echo "skipped: PyPI cannot be reached"
  echo "0 passed, 0 failed, 1 skipped"
  exit 0
fi
[ $code = 0 ] || exit $code
"$venv/bin/pip" install -q --disable-pip-version-check -r tests/batch/requirements.txt >&2
cmake --build --preset release --parallel "$(nproc)" --target backstory >build/release/extras.log 2>&1 ||
  { tail -40 build/release/extras.log >&2; exit 1; }
export BACKSTORY_BINARY_DIR=$PWD/build/release PYTHONDONTWRITEBYTECODE=1 RAY_USAGE_STATS_ENABLED=0
exec "$venv/bin/python" tests/batch/run.py
