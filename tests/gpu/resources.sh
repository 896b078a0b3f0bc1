#!/usr/bin/env bash
# resources.sh [ARCH]: what each kernel takes of a multiprocessor, as ptxas counts it for ARCH (90a): a table with
# registers of a thread, bytes of static shared memory of a block, and bytes of stack and of spilled registers of a thread.
set -euo pipefail
cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/../.."

arch="${1:-90a}"
nvcc="$(PATH="$PATH:/usr/local/cuda/bin" command -v nvcc)" || { echo "resources.sh: there is no nvcc" >&2; exit 1; }
echo "| file | kernel | registers | static shared | stack | spilled |"
echo "|---|---|---|---|---|---|"
for file in common/kernels/cuda/*.cu; do
  # As CMakeLists.txt has it compiled.
  "$nvcc" -std=c++20 -O3 --fmad=false -I . "-arch=sm_$arch" -cubin -o /dev/null -Xptxas -v \
    '-DEM_CUDA_ARCHITECTURES=""' "$file" 2>&1 \
    | c++filt -p \
    | sed -E 's/expertmesh::|cuda_device::|\(anonymous namespace\)::|_INTERNAL_[0-9a-zA-Z_]+:://g; s/unsigned short/bf16/g; s/([0-9])u\b/\1/g' \
    | awk -v file="${file##*/}" '
        /Compiling entry function/ { split($0, part, "\x27"); kernel = part[2] }
        /bytes stack frame/ { stack = $1; spilled = $5 + $9 }
        /Used [0-9]+ registers/ {
          match($0, /Used [0-9]+/); registers = substr($0, RSTART + 5, RLENGTH - 5)
          shared = match($0, /[0-9]+ bytes smem/) ? substr($0, RSTART, RLENGTH - 11) : 0
          printf "| %s | `%s` | %d | %d | %d | %d |\n", file, kernel, registers, shared, stack, spilled
        }' \
    | sort
done
