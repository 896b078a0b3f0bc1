#!/usr/bin/env bash
# test_bundle.sh OUT_DIR: makes the bundle and starts its programs in an empty environment, from elsewhere than it was
# made. Skipped (77) without EM_GPU_BUNDLE, since it builds all over again, and where there is no nvcc.
set -euo pipefail

here="$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")"
out="$1"
[[ -n "${EM_GPU_BUNDLE:-}" ]] || { echo "EM_GPU_BUNDLE is not set"; exit 77; }
PATH="$PATH:/usr/local/cuda/bin" command -v nvcc >/dev/null || { echo "there is no nvcc"; exit 77; }
"$here/bundle.sh" "$out"

there="$(mktemp -d)"
trap 'rm -rf -- "$there"' EXIT
tar -C "$there" -xJf "$out.tar.xz"
mv -- "$there/$(basename -- "$out")" "$there/moved"
run() { # PROGRAM ARGUMENTS...
  (cd / && env -i "$there/moved/bin/$1" "${@:2}")
}
fail() {
  echo "test_bundle.sh: $*" >&2
  exit 1
}

[[ "$(run unit_device --gtest_list_tests)" == *AttentionDeviceTest.* ]] || fail "unit_device does not list its tests"
[[ "$(run unit_device_model --gtest_list_tests)" == *mixtral* ]] || fail "unit_device_model does not list its tests"
version="$(run expertmesh-coordinator --version)"
[[ "$version" == *[0-9].[0-9]* ]] || fail "expertmesh-coordinator --version says '$version'"
[[ "$(run expertmesh bench engine --help)" == *--batch-sizes* ]] || fail "expertmesh bench does not start"
run expertmesh-worker --help >/dev/null || fail "expertmesh-worker does not start"

# Every library comes from the bundle, but glibc's.
for program in "$there"/moved/tree/bin/*; do
  [[ "$(head -c 4 "$program")" == *ELF ]] || continue
  outside="$(LD_LIBRARY_PATH="$there/moved/tree/lib" ldd "$program" | awk '$2 == "=>" { print $1, $3 }' \
    | grep -vF -e "$there/" | grep -vE '^lib(c|m|mvec|dl|rt|pthread|util|resolv|anl)\.so' || true)"
  [[ -z "$outside" ]] || fail "$program takes from elsewhere: $outside"
done

# The checkpoints it brings are found: the smallest one, on the emulated device.
name="DeviceModel.GivesTheReferencesLogitsRoutingAndHiddenStates/mixtral"
[[ "$(cd / && env -i EM_GOLDENS_DIR="$there/moved/goldens" "$there/moved/bin/unit_device_model" "--gtest_filter=*$name")" \
  == *"1 test from 1 test suite ran"*"PASSED"* ]] || fail "unit_device_model does not pass with the checkpoints"

[[ "$(python3 "$there/moved/torch_bench.py" --help)" == *--prefill-tokens* ]] || fail "torch_bench.py does not start"

# Without a GPU it says so; with one it is for run.sh itself.
status=0
said="$(cd "$there" && "$there/moved/run.sh" unit_device)" || status=$?
[[ "$status" == 0 || ("$status" == 77 && "$said" == *"no CUDA device: 0 run") ]] || fail "run.sh: exit code $status: $said"
echo "the bundle starts"
