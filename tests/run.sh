#!/usr/bin/env bash
# Every tier-1 test, from a bare Debian 12: installs, builds, runs, and closes with "N passed, N failed, N skipped".
#   tests/run.sh            release build and all tests, then the sanitizer runs
#   tests/run.sh --quick    without the sanitizer runs
#   tests/run.sh --full     also tests labelled tier2 (longer crash, fuzz and load runs)
# Exit code 0 only if nothing failed. CI=true makes warnings errors.
set -euo pipefail
cd "$(dirname "$0")/.."
sanitizers=1 labels='tier1'
for option in "$@"; do
  case "$option" in
    --quick) sanitizers=0 ;;
    --full) labels='tier1|tier2' ;;
    *) echo "usage: tests/run.sh [--quick] [--full]" >&2; exit 2 ;;
  esac
done

deploy/install.sh deploy/packages-test.txt
jobs=$(nproc)
werror=OFF; [ "${CI:-}" = true ] && werror=ON
results=build/test-results
rm -rf "$results" && mkdir -p "$results"
launcher=(); command -v ccache >/dev/null && launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
# Lets a compiler cache serve a checkout in any folder.
export CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=1
failed=0
runner=()

# one_tree PRESET TARGET LABELS [cmake options]: configure, build, run the tests of these labels.
one_tree() {
  local preset=$1 target=$2 label=$3; shift 3
  echo "== $preset: build" >&2
  cmake --preset "$preset" -DBACKSTORY_WERROR=$werror "${launcher[@]}" "$@" >"$results/$preset-configure.log" ||
    { cat "$results/$preset-configure.log"; exit 1; }
  cmake --build --preset "$preset" --parallel "$jobs" --target $target >"$results/$preset-build.log" 2>&1 ||
    { grep -E -A12 'error|FAILED' "$results/$preset-build.log" | head -80; exit 1; }
  echo "== $preset: test" >&2
  mkdir -p "$results/$preset"
  GTEST_OUTPUT="json:$PWD/$results/$preset/" "${runner[@]}" ctest --test-dir "build/$preset" -L "$label" -j "$jobs" --output-on-failure \
    --output-junit "$PWD/$results/$preset.xml" --no-tests=error || failed=1
}

python3 tests/check_house.py || failed=1
one_tree release all "$labels"
if [ $sanitizers = 1 ]; then
  # Shadow memory has fixed addresses; a kernel that places a program at random in more bits than GCC 12 knows would hit it.
  setarch "$(uname -m)" -R true 2>/dev/null && runner=(setarch "$(uname -m)" -R)
  export UBSAN_OPTIONS=print_stacktrace=1
  # Debian's gRPC and RocksDB are not instrumented: ASan tolerates that, TSan does not, so each runs its own label.
  ASAN_OPTIONS=detect_leaks=1 one_tree asan tests_asan asan
  one_tree tsan tests_tsan tsan
fi
python3 tests/summary.py "$results" || failed=1
exit $failed
