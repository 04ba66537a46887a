#!/usr/bin/env bash
# Everything that needs a GPU, in one go: build in place, test on the device, prove and time the kernels, run the workloads.
#   bench/run_all.sh [tests|kernels|workloads|http|load|invariance|sampling|startup|sanitize]...
# Default: the first four. Results go to bench/results and the terminal. On an H100, beside the build: invariance 3 minutes,
# sampling 2, startup 2, sanitize 4.
# Needs what the environment already has (torch, cmake, ninja, nvcc); fetches nothing.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
build=${PE_BUILD_DIR:-/tmp/pyengine-gpu}
parts=${*:-tests kernels workloads http}
status=0
step() { printf '\n== %s (%ss)\n' "$*" "$SECONDS"; }
check() { "$@" || { status=1; echo "FAILED: $*"; }; }

step "build"
cmake -S . -B "$build" -G Ninja -DPE_TORCH=ON -DPE_CUDA=ON -DPE_BENCH=ON -DPE_PYTHON="$(command -v python3)" >/dev/null || exit 1
cmake --build "$build" --parallel "$(nproc)" 2>&1 | tail -3
[ "${PIPESTATUS[0]}" -eq 0 ] || exit 1

for part in $parts; do
  case $part in
    tests)
      step "tests on the device"
      check python3 -m pytest -q -x tests/ops tests/engine tests/models -k "cuda or not cpu" --timeout 600
      ;;
    kernels)
      for bench in paged_attention linear stream_gemm sampling elementwise kv_cache; do
        step "kernels: $bench"
        check "$build/bench_$bench"
      done
      ;;
    workloads)
      run() { check python3 -m bench.serving.offline --load-format dummy --save "$@"; }
      step "llama31-8b"
      run --model bench/shapes/llama31-8b --repeats 3 nano nano:sampled mix1024-256 latency1 latency32 prefill long16k prefix
      step "qwen3-0.6b"
      run --model bench/shapes/qwen3-0.6b --repeats 3 nano latency1
      step "smol-135m"
      run --model bench/shapes/smol-135m --repeats 3 nano latency1
      ;;
    http)
      step "llama31-8b over HTTP"
      check python3 -m bench.serving http --start-server "--model bench/shapes/llama31-8b --load-format dummy" --save \
        --repeats 3 rate:25:3000 burst:512 spike
      step "start to first token"
      check python3 -m bench.startup --save --model bench/shapes/llama31-8b --load-format dummy
      ;;
    load)
      step "llama31-8b: latency against load"
      check python3 -m bench.serving http --start-server "--model bench/shapes/llama31-8b --load-format dummy" --save \
        rate:5:100 rate:10:200 rate:15:300 rate:20:400 rate:30:600
      ;;
    invariance)
      step "the same tokens in every company"
      check python3 -m pytest -q tests/engine/test_crowd.py -k cuda --timeout 600 --durations 8
      step "what that costs"
      check python3 -m bench.invariance.cost --save
      ;;
    sampling)
      step "stages of the sampler, structured output"
      check python3 -m bench.sampling stages structured --save
      ;;
    startup)
      step "start to first token, weights of full size"
      check bench/startup/run.sh --save
      ;;
    sanitize)
      step "compute-sanitizer"
      check tests/gpu/sanitize.sh
      ;;
    *)
      echo "unknown part $part; have tests, kernels, workloads, http, load, invariance, sampling, startup, sanitize" >&2
      exit 2
      ;;
  esac
done
exit "$status"
