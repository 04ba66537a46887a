#!/usr/bin/env bash
# compute-sanitizer over a small selection of the op tests (sanitized.txt): every kernel, small shapes.
#   tests/gpu/sanitize.sh [memcheck|racecheck]...     default: both
# Prints a verdict for each tool, and the tests that are not clean; exits 0 when all are. Needs the extension built for
# the GPU. Every test has a process of its own, PE_JOBS of them at a time (8). The selected tests compute what they
# compare with on the CPU: racecheck (2025.3) aborts in some of cuBLAS's kernels, even where it is told not to check them.
#
# What a clean verdict means. memcheck: no kernel of ours touched global, shared or local memory outside an allocation (each
# tensor is one of its own here) or misaligned. racecheck: no hazard in shared memory between threads that barriers should
# have kept apart; it does not look at global memory, follows cp.async and the mbarriers of bulk copies (TMA) only in part,
# and does not know that wgmma reads shared memory, so it can report hazards there that are none (to be read, not believed)
# and miss real ones. Only kernels in namespace pe::cuda are checked; cuBLASLt's and torch's are not ours to mend. Each tool
# must first find a fault that is planted in that namespace.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
tools=${*:-memcheck racecheck}
sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
[ -x "$sanitizer" ] || { echo "compute-sanitizer is not here; it is a part of the CUDA toolkit" >&2; exit 2; }
nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mapfile -t selection < tests/gpu/sanitized.txt
export PYTORCH_NO_CUDA_MEMORY_CACHING=1  # an allocation for each tensor: reading past one's end is then an error
export PE_ORACLE_DEVICE=cpu
FOUND=99
status=0

"$nvcc" -lineinfo -o "$work/planted" tests/gpu/planted.cu || exit 2

check() {  # tool, filter, command...
  local tool=$1 filter=$2
  shift 2
  "$sanitizer" --tool "$tool" --launch-timeout 120 --error-exitcode $FOUND --report-api-errors no ${filter:+--kernel-name "$filter"} "$@"
}

filter_of() {  # a filter of kernels by name under which the tool finds the planted fault
  local tool=$1 filter
  for filter in kns=2pe4cuda kns=pe::cuda kernel_substring=2pe4cuda ""; do  # the last one: every kernel, which is slow
    check "$tool" "$filter" "$work/planted" "${tool:0:1}" >"$work/planted.log" 2>&1
    if [ $? -eq $FOUND ] && grep -q "ERROR SUMMARY: [1-9]\|RACECHECK SUMMARY: [1-9]" "$work/planted.log"; then
      echo "$filter"
      return 0
    fi
  done
  return 1
}

verdict_of() {  # tool, filter, log, test
  local tool=$1 filter=$2 log=$3 test=$4
  check "$tool" "$filter" --target-processes application-only \
    python3 -m pytest -q -p no:cacheprovider --timeout 600 "$test" >"$log" 2>&1
  local result=$?
  if [ "$result" -eq 0 ] && grep -q "^1 passed" "$log"; then
    echo clean
  else
    echo "FAILED with $result: $(grep -E "^=========|passed|failed|skipped|error" "$log" | head -8 | tr '\n' ' ')"
  fi
}

for tool in $tools; do
  begin=$SECONDS
  if ! filter=$(filter_of "$tool"); then
    echo "$tool: FAILED: it did not find the planted fault"
    tail -5 "$work/planted.log"
    status=1
    continue
  fi
  for i in "${!selection[@]}"; do
    while [ "$(jobs -rp | wc -l)" -ge "${PE_JOBS:-8}" ]; do wait -n; done
    verdict_of "$tool" "$filter" "$work/$tool.$i" "${selection[$i]}" >"$work/$tool.$i.verdict" &
  done
  wait
  clean=0
  for i in "${!selection[@]}"; do
    verdict=$(cat "$work/$tool.$i.verdict")
    if [ "$verdict" = clean ]; then clean=$((clean + 1)); else echo "$tool: ${selection[$i]}: $verdict"; fi
  done
  if [ "$clean" -eq "${#selection[@]}" ]; then
    echo "$tool: CLEAN ($clean tests, $((SECONDS - begin)) s)"
  else
    echo "$tool: $clean of ${#selection[@]} tests clean ($((SECONDS - begin)) s)"
    status=1
  fi
done
exit $status
