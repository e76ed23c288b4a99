#!/usr/bin/env bash
# Correctness, compute-sanitizer on small shapes, then timing beside the peers: one go, on a machine with a Hopper GPU.
#   tests/bench/gpu/run.sh [DIR]     DIR holds cuda_attend_test and libattend_bench.so (default: build/release/gpu)
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=${1:-build/release/gpu}
failed=0
nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.max.sm,power.limit --format=csv,noheader
echo "== correctness against float64"
"$dir/cuda_attend_test" --gtest_brief=1 || failed=1
echo "== compute-sanitizer, small shapes"
for tool in memcheck racecheck; do
  timeout 150 compute-sanitizer --tool $tool --error-exitcode 9 "$dir/cuda_attend_test" --gtest_brief=1 \
    --gtest_filter='*SmallShapes*:*DamageExceeds*' 2>&1 | tail -4 || { echo "$tool: failed"; failed=1; }
done
echo "== timing"
python3 "$here/attend_bench.py" --lib ours="$dir/libattend_bench.so" || failed=1
exit $failed
