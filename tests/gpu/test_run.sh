#!/usr/bin/env bash
# test_run.sh BIN: what run.sh makes of tests that pass, fail, are skipped and end the program, and of a server whose
# tokens are the same or others. The programs are stand-ins; the server is that of BIN, on the processor.
set -euo pipefail

here="$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")"
bin="$(readlink -f -- "$1")"
there="$(mktemp -d)"
trap 'rm -rf -- "$there"' EXIT
fail() {
  printf 'test_run.sh: %s\n--- run.sh said\n%s\n' "$*" "$said" >&2
  exit 1
}

# TestDevice.IsTheOneAskedFor passes; Unit.Faulty fails, alone it passes; Unit.Ends ends the program; Unit.Off is skipped.
mkdir "$there/bin"
cat >"$there/bin/unit_device" <<'SCRIPT'
#!/usr/bin/env bash
[[ "$EM_TEST_DEVICE" == cuda ]] || exit 3
filter="${GTEST_FILTER:-*}"
for argument in "$@"; do
  case "$argument" in
    --gtest_list_tests)
      printf 'Unit.\n  Good\n  Faulty\n  Ends\n  Off\nCases/Unit.\n  Many/a  # GetParam() = "a"\n  Many/b  # GetParam() = "b"\n'
      exit 0
      ;;
    --gtest_filter=*) filter="${argument#*=}" ;;
  esac
done
status=0
for test in TestDevice.IsTheOneAskedFor Unit.Good Unit.Faulty Unit.Ends Unit.Off Cases/Unit.Many/a Cases/Unit.Many/b; do
  [[ ":$filter:" == *":$test:"* ]] || continue
  echo "[ RUN      ] $test"
  case "$test" in
    TestDevice*) echo "device: cuda:0 Stand-in" ;;&
    Unit.Faulty) [[ "$filter" == Unit.Faulty ]] || { status=1; echo "[  FAILED  ] $test (2 ms)"; continue; } ;;
    Unit.Ends) kill -SEGV $$ ;;
    Unit.Off) echo "[  SKIPPED ] $test (0 ms)"; continue ;;
    */b) status=1; echo "[  FAILED  ] $test, where GetParam() = \"b\" (2 ms)"; continue ;;
  esac
  echo "[       OK ] $test (1 ms)"
done
((status == 0)) || printf '[  FAILED  ] 2 tests, listed below:\n[  FAILED  ] Unit.Faulty\n'
exit "$status"
SCRIPT
cat >"$there/bin/expertmesh" <<SCRIPT
#!/usr/bin/env bash
arguments=("\$@")
for i in "\${!arguments[@]}"; do
  [[ "\${arguments[\$i]}" != cuda ]] || arguments[\$i]=cpu other="\${EM_OTHER_TOKENS:-}"
done
exec "$bin/expertmesh" "\${arguments[@]}" \${other:+--load-format dummy}
SCRIPT
printf '#!/bin/sh\nexit 1\n' >"$there/bin/nvidia-smi"
chmod +x "$there/bin/"*
ln -s unit_device "$there/bin/unit_device_model"
for program in coordinator worker bench; do ln -s "$bin/expertmesh-$program" "$there/bin/"; done

run() { # EXIT_CODE ARGUMENTS...
  local expected="$1" status=0
  shift
  said="$(cd "$there" && PATH="$there/bin:$PATH" "$here/run.sh" --bin "$there/bin" "$@" 2>&1)" || status=$?
  [[ "$status" == "$expected" ]] || fail "exit code $status instead of $expected"
}
says() { grep -qE -- "$1" <<<"$said" || fail "does not say '$1'"; }
ends_with() { [[ "$(tail -n 1 <<<"$said")" == "$1" ]] || fail "does not end with '$1'"; }

run 1 unit_device
says '^GPU +Stand-in$'
says '^unit_device +2 +3 +1 '
says 'ended by Unit.Ends \(exit code 139\)'
says '1 of those that failed pass alone: Unit.Faulty'
says '^FAILED  unit_device: Cases/Unit.Many/b$'
ends_with "2 passed, 3 failed"
! command -v python3 >/dev/null || python3 - "$there/results.json" <<'CHECK' || fail "results.json is not what it should be"
import json, sys
results = json.load(open(sys.argv[1]))
assert (results["gpu"], results["passed"], results["failed"]) == ("Stand-in", 2, 3), results
assert [stage["stage"] for stage in results["stages"]] == ["unit_device"] and len(results["failures"]) == 3, results
CHECK

prompts="$(grep -c '^ *"prompt": ' "$here/../../launch/demo-model/golden.json")"
run 0 e2e
says "^e2e +$((2 * prompts)) +0 "
ends_with "$((2 * prompts)) passed, 0 failed"
EM_OTHER_TOKENS=1 run 1 e2e
ends_with "0 passed, $((2 * prompts)) failed"
run 2 no_such_stage
echo "run.sh counts what it should"
