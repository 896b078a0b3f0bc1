#!/usr/bin/env bash
# test_run.sh BIN: what run.sh makes of tests that pass, fail, are skipped and end the program, of a server whose tokens
# are the same or others, and of benchmarks. The programs are stand-ins; the server is that of BIN, on the processor.
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
[[ "\$1" != bench ]] || exec "$there/bin/bench_engine" "\$@"
arguments=("\$@")
for i in "\${!arguments[@]}"; do
  [[ "\${arguments[\$i]}" != cuda ]] || arguments[\$i]=cpu other="\${EM_OTHER_TOKENS:-}"
done
exec "$bin/expertmesh" "\${arguments[@]}" \${other:+--load-format dummy}
SCRIPT
# bench engine: figures made up from its options. A line in $FAKES/log: model, workers, form, how rows go, whose MPS.
# $TOO_LARGE has no room, $FAILS fails, $HANGS tells $FAKES/hangs its pid and never ends; rows go in one of $ROW_WAYS alone.
export FAKES="$there/fakes"
cat >"$there/bin/bench_engine" <<'SCRIPT'
#!/usr/bin/env bash
model="$(basename -- "$3" .json)" workers=0 static=0 rows="" factor=1 sizes=""
while (($#)); do
  case "$1" in
    --json) json="$2" ;;
    --batch-sizes) sizes="$2" ;;
    --workers) workers="$2" factor=2 ;;
    --static-exchange-bytes) static="$2" ;;
    --row-transport) rows="$2" ;;
    --enforce-eager) factor=1.25 ;;
  esac
  shift
done
if ((static > 0)); then form=static factor=1.6; else form=exact; fi
if [[ "$rows" == host ]]; then way=host; elif [[ -z "${EXPERTMESH_NCCL_ONE_GPU:-}" ]]; then way=near; else way=apart; fi
echo "$model $workers $form $way ${CUDA_MPS_PIPE_DIRECTORY:+ours}$sizes" >>"$FAKES/log"
case "$model" in
  "${TOO_LARGE:-}")
    echo "expertmesh: not enough memory on cuda:0 Stand-in: 93.4 GB for weights + 1.2 GB for buffers (--max-num-batched-tokens), but 72.0 GB of 80.0 GB free may be used (--gpu-memory-utilization)" >&2
    exit 2
    ;;
  "${FAILS:-}") exit 1 ;;
  "${HANGS:-}")
    echo $$ >"$FAKES/hangs"
    exec tail -f /dev/null
    ;;
esac
((workers == 0)) || [[ " ${ROW_WAYS-near apart host} " == *" $way "* ]] || exit 1
"$FAKES/figures" "$factor" 1000 >"$json"
SCRIPT
mkdir "$FAKES"
cat >"$FAKES/figures" <<'SCRIPT'
#!/usr/bin/env bash
# figures STEP PREFILL: of batch sizes 1 and 8, as --json has them.
of() { # BATCH
  printf '    {\n      "batch_size": %d,\n      "prefill": {\n        "tokens": 128,\n        "tokens_per_second": %s\n      },\n' "$1" "$2"
  printf '      "decode": {\n        "median_step_ms": %s,\n        "tokens_per_second": 7\n      }\n    }' "$(awk "BEGIN { print $1 * $3 }")"
}
printf '{\n  "prefill_tokens": 4096,\n  "results": [\n%s,\n%s\n  ]\n}\n' "$(of 1 "$2" "$1")" "$(of 8 "$2" "$1")"
SCRIPT
# MPS: up in $CUDA_MPS_PIPE_DIRECTORY, or everywhere with $MPS_WAS_UP; does not start with $MPS_BROKEN.
cat >"$FAKES/mps" <<'SCRIPT'
#!/usr/bin/env bash
up="${CUDA_MPS_PIPE_DIRECTORY:+$CUDA_MPS_PIPE_DIRECTORY/up}"
if [[ "${1:-}" == -d ]]; then
  echo "start $CUDA_MPS_PIPE_DIRECTORY" >>"$FAKES/mps_log"
  [[ -z "${MPS_BROKEN:-}" ]] || { echo "no permission"; exit 1; }
  : >"$up"
  exit 0
fi
read -r command
if [[ ! -e "$up" && -z "${MPS_WAS_UP:-}" ]]; then
  echo "Cannot find MPS control daemon process"
  exit 1
fi
case "$command" in
  get_server_list) echo 4711 ;;
  quit) echo quit >>"$FAKES/mps_log" && rm -- "$up" ;;
esac
SCRIPT
# torch_bench.py, half as fast with a quarter of the prompt tokens a second; and a Python without packages.
# shellcheck disable=SC2016  # the script's own
printf '#!/usr/bin/env bash\n"$FAKES/figures" 2 250 >"${!#}"\n' >"$FAKES/torch"
printf '#!/usr/bin/env bash\nexec python3 -I -S "$@"\n' >"$FAKES/no_torch"
chmod +x "$FAKES/"*
mkfifo "$FAKES/hangs"
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

# ---- the benchmark
results() { # PYTHON: about `results`
  ! command -v python3 >/dev/null || python3 -c "import json; results = json.load(open('$there/results.json')); assert $1, results" \
    || fail "results.json: not $1"
}
started() { # EXPECTED, of $FAKES/log
  [[ "$(<"$FAKES/log")" == "$1" ]] || fail "started was"$'\n'"$(<"$FAKES/log")"
  : >"$FAKES/log"
}
: >"$FAKES/log"
: >"$FAKES/mps_log"
export EM_GPU_BENCH="small large" EM_GPU_BENCH_WORKERS="small large" EM_GPU_MPS_CONTROL="no such program" EM_GPU_PYTHON="$FAKES/no_torch"

# One model has no room; neither MPS nor PyTorch is there.
TOO_LARGE=large run 0 bench
says '^bench +1 +0 +0 +[0-9]+  small$'
says '^bench +0 +0 +1 +[0-9]+  large: left out: needs 93.4 GB and 1.2 GB for buffers, 72.0 GB may be used$'
says '^exchange +5 +0 +0 +[0-9]+  small, MPS: off, there is no no such program, rows by: near$'
says '^ +MPS: off, .*time-slice the GPU'
says '^ +8 +8.000 +10.000 +20.0% +16.000 +50.0% +12.800 +37.5% +16.000 +50.0% +12.800 +37.5%$'
says '^exchange +0 +0 +1 +[0-9]+  large: left out'
! command -v python3 >/dev/null || says '^torch +0 +0 +1 +[0-9]+  small: left out: there is no torch'
ends_with "6 passed, 0 failed"
results 'results["complete"] and list(results["bench"]) == ["small"] and results["torch"] == {}'
results '[(row["batch_size"], row["1_static_share"]) for row in results["exchange"]["small"]["steps"]] == [(1, 0.375), (8, 0.375)]'
started 'small 0 exact apart 
small 0 exact apart 
small 1 exact near 
small 1 static near 
small 2 exact near 
small 2 static near 
large 0 exact apart '

# MPS starts, and ends; NCCL does not take two processes of a host on one GPU; PyTorch is there. The first model's parts come first.
EM_GPU_BENCH_WORKERS=small EM_GPU_MPS_CONTROL="$FAKES/mps" EM_GPU_PYTHON="$FAKES/torch" ROW_WAYS=apart run 0 bench
says '^exchange +5 +0 +0 .*small, MPS: on, rows by: apart$'
! grep -q 'time-slice' <<<"$said" || fail "says that processes time-slice the GPU"
says '^ +8 +4.00 +2.00$'
results '[part["stage"] for part in results["stages"]] == ["bench", "exchange", "torch", "bench", "torch"]'
results 'results["torch"]["large"]["ours_over_torch"][0] == {"batch_size": 1, "prefill": 4, "decode": 2}'
started 'small 0 exact apart 
small 0 exact apart 
small 1 exact near ours
small 1 exact apart ours
small 1 static apart ours
small 2 exact apart ours
small 2 static apart ours
large 0 exact apart '
[[ "$(sed 's/ .*//' "$FAKES/mps_log" | paste -sd,)" == start,quit ]] || fail "MPS heard $(<"$FAKES/mps_log")"

export EM_GPU_BENCH=small
MPS_BROKEN=1 EM_GPU_MPS_CONTROL="$FAKES/mps" ROW_WAYS=host run 0 bench
says '^no permission$'
says '^exchange +3 +0 +2 .*small, MPS: off, it did not start, rows by: host; 1 static: left out, rows do not go by NCCL; 2 static'
! grep -q ours "$FAKES/log" || fail "an MPS that did not start was used"
: >"$FAKES/log"
MPS_WAS_UP=1 EM_GPU_MPS_CONTROL="$FAKES/mps" EM_GPU_BENCH_OPTIONS="--batch-sizes 1,8" run 0 bench
says 'MPS: on, and was before'
[[ "$(grep -c ' 1,8$' "$FAKES/log")" == 6 ]] || fail "EM_GPU_BENCH_OPTIONS is not for all"
[[ "$(grep -c quit "$FAKES/mps_log")" == 1 ]] || fail "ended an MPS that it had not started"
ROW_WAYS="" run 1 bench
says '^exchange +1 +2 +2 .*1 exact failed'
FAILS=small run 1 bench
says '^bench +0 +1 +0 +[0-9]+  small: exit code 1$'

# Killed in the middle: what was known is in a file that is whole; asked to end: nothing is left behind.
export EM_GPU_BENCH="small hangs" EM_GPU_BENCH_WORKERS=small EM_GPU_MPS_CONTROL="$FAKES/mps"
for signal in KILL TERM; do
  rm -f -- "$there/results.json"
  : >"$FAKES/mps_log"
  (cd "$there" && HANGS=hangs PATH="$there/bin:$PATH" exec "$here/run.sh" --bin "$there/bin" bench) >"$there/said" 2>&1 &
  script=$!
  hanging="$(timeout 120 head -n 1 "$FAKES/hangs")" || { said="$(<"$there/said")"; fail "does not come to what hangs"; }
  kill "-$signal" "$script"
  wait "$script" 2>/dev/null || true
  said="$(<"$there/said")"
  results 'results["complete"] is False and results["passed"] == 6 and list(results["bench"]) == ["small"] and "small" in results["exchange"]'
  if [[ "$signal" == KILL ]]; then
    kill "$hanging"
  else
    ! kill -0 "$hanging" 2>/dev/null || fail "what it had started is still there"
    [[ "$(tail -n 1 "$FAKES/mps_log")" == quit ]] || fail "MPS is still there"
    pipe="$(sed -n 's/^start //p' "$FAKES/mps_log")"
    [[ -n "$pipe" && ! -e "${pipe%/mps/pipe}" ]] || fail "$pipe is still there"
  fi
done
echo "run.sh counts what it should"
