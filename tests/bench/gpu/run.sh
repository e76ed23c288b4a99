#!/usr/bin/env bash
# Correctness, compute-sanitizer on small shapes, then timing beside the peers: one go, on a machine with a Hopper GPU.
#   tests/bench/gpu/run.sh [DIR]     DIR holds kernels_cuda_attend_test and libattend_bench.so (default: build/release/tests)
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=${1:-build/release/tests}
failed=0
nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.max.sm,power.limit --format=csv,noheader
echo "== correctness against float64"
"$dir/kernels_cuda_attend_test" --gtest_brief=1 || failed=1
echo "== compute-sanitizer, small shapes"
# racecheck is no use here: it does not follow mbarrier hand-overs and reports each as a race.
for tool in memcheck synccheck; do
  timeout 150 compute-sanitizer --tool $tool --error-exitcode 9 "$dir/kernels_cuda_attend_test" --gtest_brief=1 \
    --gtest_filter='*SmallShapes*:*DamageExceeds*' 2>&1 | tail -4 || { echo "$tool: failed"; failed=1; }
done
echo "== timing"
python3 "$here/attend_bench.py" --lib ours="$dir/libattend_bench.so" || failed=1
if [ -x "$dir/grab_cuda_test" ]; then
  echo "== GRAB on the card against the CPU, then the whole scoring pass, prefill and append"
  for test in grab_cuda_test grab_history_attend_test grab_cuda_prefill_test grab_cuda_tokens_test grab_cuda_state_test; do
    "$dir/$test" --gtest_brief=1 || failed=1
  done
  "$dir/../bin/grab_cuda_bench" || failed=1
  "$dir/../bin/grab_cuda_state_bench" || failed=1
  echo "== the same pass by PyTorch"
  python3 "$here/pass_bench.py" || failed=1
fi
if [ -x "$dir/glass_cuda_test" ]; then
  echo "== GLASS on the card against the public outputs and the CPU, then beside its PyTorch twin"
  "$dir/glass_cuda_test" --gtest_brief=1 || failed=1
  timeout 150 compute-sanitizer --tool memcheck --error-exitcode 9 "$dir/glass_cuda_test" --gtest_brief=1 \
    --gtest_filter='*small_short_7' 2>&1 | tail -3 || failed=1
  "$dir/../bin/glass_cuda_bench" --mask --throughput || failed=1
  PYTHONPATH=. python3 "$here/glass_peer.py" --ours "$dir/../bin/glass_cuda_bench" --parts search --dtypes bf16 || failed=1
fi
exit $failed
