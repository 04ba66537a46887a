#!/usr/bin/env bash
# Process start to first token with weights of full size in the page cache: llama31-8b (16 GB, written here first) and
# SmolLM2. About two minutes, half of it writing; needs 17 GB of disk and as much memory for the page cache.
#   bench/startup/run.sh [--save]        folder: PE_STAND_IN, removed at the end unless PE_KEEP=1; by default in /dev/shm where
#                                        that has room (the page cache without a disk behind it), else in /tmp
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
room_kb=$(df --output=avail /dev/shm 2>/dev/null | tail -1) || true
base=/tmp
[ "${room_kb:-0}" -gt $((20 << 20)) ] && base=/dev/shm
folder=${PE_STAND_IN:-$base/stand-in}
trap '[ "${PE_KEEP:-}" = 1 ] || rm -rf "$folder"' EXIT
smollm2=smollm2-135m  # the real one where its file lies: nothing is downloaded here
if [ ! -f "${XDG_CACHE_HOME:-$HOME/.cache}/pyengine/models/SmolLM2-135M-Instruct.Q4_1.gguf" ]; then
  smollm2=$folder/smol-135m
  python3 -m bench.stand_in "$smollm2" --model bench/shapes/smol-135m
fi
python3 -m bench.startup --repeats 3 "$@" --model "$smollm2"
python3 -m bench.stand_in "$folder/llama31-8b" --model bench/shapes/llama31-8b
python3 -m bench.startup --repeats 2 "$@" --model "$folder/llama31-8b"
