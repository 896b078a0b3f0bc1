#!/usr/bin/env bash
# run.sh [--long]: installs what it needs, builds, and runs every test: the whole suite in a release build, then the unit
# tests under AddressSanitizer and UndefinedBehaviorSanitizer. The last line counts the tests of all stages; skipped ones
# (without a GPU, what needs one) are neither passed nor failed.
#   --long  also the crowd of test_load.py for a minute, the fault tests at their full length, the unit tests under
#           ThreadSanitizer, clang-tidy over all sources, each fuzz target for a minute, the clients people use (openai,
#           lm-eval; from PyPI, into build/clients), the bundle for machines with a GPU, where there is nvcc, and the steps
#           of the Dockerfile, in roots that debootstrap makes
set -euo pipefail
cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.."

long=false
case "${1:-}" in
  "") ;;
  --long) long=true ;;
  *)
    sed -n '2,8s/^# //p' tests/run.sh
    exit 2
    ;;
esac

# Open MPI and the libraries under it keep memory until the process ends.
export LSAN_OPTIONS="suppressions=$PWD/tests/lsan_suppressions.txt:print_suppressions=0"
export ASAN_OPTIONS="detect_stack_use_after_return=1"
export UBSAN_OPTIONS="print_stacktrace=1"

passed=0 failed=0 skipped=0
log="$(mktemp)"
trap 'rm -f "$log"' EXIT

# stage NAME COMMAND...: runs it with its time; a failure counts as one failed test and ends nothing.
stage() {
  local name="$1" start=$SECONDS status=0
  shift
  echo "=== $name"
  "$@" || status=$?
  echo "=== $name: $((SECONDS - start)) s$( ((status == 0)) || echo ", FAILED")"
  return "$status"
}

# Kernels for GPUs take nvcc longest: where there is no GPU, the short form compiles them for one kind.
cuda=(-UCMAKE_CUDA_ARCHITECTURES)
if ! $long && ! nvidia-smi -L >/dev/null 2>&1; then cuda=(-DCMAKE_CUDA_ARCHITECTURES=90a-real); fi

build() { # PRESET TARGET
  cmake --preset "$1" --no-warn-unused-cli "${cuda[@]}" -DEM_BUILD_TESTS=ON >/dev/null && cmake --build --preset "$1" --target "$2"
}

# run_tests PRESET [ctest options]: adds the counts of ctest's summary to the totals.
run_tests() {
  local status=0 summary skips
  ctest --preset "$@" --no-tests=error | tee "$log" || status=$?
  summary="$(grep -E '^[0-9]+% tests passed, [0-9]+ tests failed out of [0-9]+$' "$log" || true)"
  if [[ "$summary" =~ ([0-9]+)\ tests\ failed\ out\ of\ ([0-9]+)$ ]]; then
    skips="$(grep -cE '\*\*\*Skipped +[0-9.]+ sec' "$log" || true)"
    failed=$((failed + BASH_REMATCH[1]))
    passed=$((passed + BASH_REMATCH[2] - BASH_REMATCH[1] - skips))
    skipped=$((skipped + skips))
  else
    failed=$((failed + 1))
  fi
  return "$status"
}

# build_and_test PRESET TARGET [ctest options]
build_and_test() {
  local preset="$1" target="$2"
  shift 2
  if stage "build ($preset)" build "$preset" "$target"; then
    stage "test ($preset)" run_tests "$preset" "$@" || true
  else
    failed=$((failed + 1))
  fi
}

# check NAME COMMAND...: a stage that counts as one test.
check() {
  if stage "$@"; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
}

tidy() {
  # clang-tidy 14 does not follow Boost.Asio's coroutines.
  git ls-files '*.cpp' | grep -v -e '^tests/' -e 'bench/load_generator.cpp' | xargs -P "$(nproc)" -n 4 clang-tidy -p build --quiet --extra-arg=-Wno-unknown-warning-option
}

fuzz() {
  cmake --preset fuzz >/dev/null && cmake --build --preset fuzz --target fuzz_targets || return 1
  local target name
  mkdir -p build-fuzz/findings
  for target in build-fuzz/bin/fuzz_*; do
    name="${target##*/fuzz_}"
    mkdir -p "build-fuzz/corpus/$name"
    # Its log is long: shown only where it found something.
    "$target" -max_total_time=60 -timeout=10 -rss_limit_mb=2048 -artifact_prefix="build-fuzz/findings/$name-" \
      "build-fuzz/corpus/$name" "tests/fuzz/corpus/$name" >"build-fuzz/$name.log" 2>&1 || { tail -n 60 "build-fuzz/$name.log"; return 1; }
    echo "fuzz_$name: $(grep -E '^Done ' "build-fuzz/$name.log")"
  done
}

clients() {
  [[ -x build/clients/bin/python ]] || python3 -m venv build/clients || return 1
  build/clients/bin/pip install -q -r tests/clients/requirements.txt || return 1
  local test
  for test in tests/clients/test_*.py; do
    EXPERTMESH="$PWD/build/bin/expertmesh" build/clients/bin/python -B "$test" || return 1
  done
}

packages=(--tests)
if $long; then
  packages+=(--long)
  export EM_LOAD_SECONDS=60 EM_FAULT_KILLS=1000 EM_FAULT_STORM=200 EM_FAULT_MESSAGES=10000 EM_FAULT_ROUNDS=20
  export EM_SIMULATION_SEEDS=100000 EM_PUBLISHED_GB=8 EM_GPU_BUNDLE=1 EM_DEVICE_ALL=1 EM_IMAGE=all
fi
stage packages bash launch/install_packages.sh "${packages[@]}"
# What is not to run beside others says so.
build_and_test release all -j "$(nproc)"
EM_SIMULATION_SEEDS=200 build_and_test asan unit_tests -L unit -j "$(nproc)"
if $long; then
  build_and_test tsan unit_tests -L unit -j "$(nproc)"
  check clang-tidy tidy
  check fuzz fuzz
  check clients clients
fi

echo "=== all stages: $SECONDS s, $skipped tests skipped"
echo "$passed passed, $failed failed"
((failed == 0))
