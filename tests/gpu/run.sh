#!/usr/bin/env bash
# run.sh [--bin DIR] [--results FILE] [STAGE...]: what has to be seen on a GPU, on the first one here. Works in a build
# tree and in what bundle.sh made. Stages, all of them unless some are named:
#   unit_device        the ops, against the processor's
#   unit_device_model  the reference checkpoints
#   e2e                the server's greedy tokens, against the same server's on the processor
#   workers            the same tokens with the experts in 1, 2 and 3 workers on this one GPU (rows by NCCL where it is
#                      found), with one of them on the processor, and with one killed in the middle of an answer
#   memcheck           unit_device under compute-sanitizer, where there is one
#   bench              the engine's benchmark of the models that have room there (EM_GPU_BENCH: names in launch/bench/configs;
#                      qwen3moe-703m gpt-oss-20b qwen3-30b-a3b mixtral-8x7b), what the exchange with workers on this GPU
#                      costs (EM_GPU_BENCH_WORKERS: qwen3moe-703m gpt-oss-20b; under MPS where EM_GPU_MPS_CONTROL,
#                      nvidia-cuda-mps-control, starts it), and the same models in PyTorch where EM_GPU_PYTHON (python3)
#                      has it; EM_GPU_BENCH_OPTIONS: --batch-sizes, --input-len, --output-len, --prefill-tokens for all
# A stage's programs get EM_GPU_STAGE_SECONDS (1200) each. Ends with `N passed, N failed`. results.json is written whenever
# something is known, whole each time. Exit code 1 if anything failed; 77 if there is no GPU.
set -uo pipefail

here="$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")"
usage() {
  sed -n '2,16s/^# //p' "${BASH_SOURCE[0]}"
  exit 2
}

bin="" results="results.json" stages=()
while (($#)); do
  case "$1" in
    --bin) bin="${2:-}"; shift ;;
    --results) results="${2:-}"; shift ;;
    unit_device | unit_device_model | e2e | workers | memcheck | bench) stages+=("$1") ;;
    *) usage ;;
  esac
  shift
done
((${#stages[@]})) || stages=(unit_device unit_device_model e2e workers memcheck bench)
limit="${EM_GPU_STAGE_SECONDS:-1200}"

if [[ -f "$here/COMMIT" ]]; then  # a bundle
  bin="${bin:-$here/bin}"
  share="$here/tree/share/expertmesh"
  export EM_GOLDENS_DIR="$here/goldens"
  commit="$(<"$here/COMMIT")"
else
  root="$here/../.."
  bin="${bin:-$root/build/bin}"
  share="$root/launch"
  commit="$(git -C "$root" describe --always --dirty --abbrev=12 2>/dev/null || echo unknown)"
fi
for program in unit_device unit_device_model expertmesh expertmesh-coordinator expertmesh-worker expertmesh-bench; do
  [[ -x "$bin/$program" ]] || { echo "run.sh: $bin/$program is not there: build it first" >&2; exit 1; }
done

scratch="$(mktemp -d)"
server_pid="" part_pid=""
clean_up() {
  [[ -z "$server_pid" ]] || kill -KILL "$server_pid" 2>/dev/null
  if [[ -n "$part_pid" ]]; then  # a part of the benchmark is under way
    kill -TERM "$part_pid" 2>/dev/null && wait "$part_pid"
    cat "$part_log"
  fi
  stop_mps
  rm -rf -- "$scratch"
}
trap clean_up EXIT
# shellcheck source=tests/gpu/bench_stage.sh
source "$here/bench_stage.sh" || exit 1
export EM_TEST_DEVICE=cuda EM_DEVICE_ALL=1

# ---- the device
smi() { # FIELD
  nvidia-smi --query-gpu="$1" --format=csv,noheader 2>/dev/null | head -n 1
}
# Absent is what the programs call absent where the system shows no GPU either; everything else has to be looked into.
if ! timeout "$limit" "$bin/unit_device" --gtest_filter=TestDevice.IsTheOneAskedFor >"$scratch/probe" 2>&1; then
  sed -nE '/no NVIDIA driver|finds no device|has no CUDA/s/^C\+\+ exception with description "(.*)" thrown.*/\1/p' \
    "$scratch/probe" >"$scratch/reason"
  if [[ -s "$scratch/reason" && ! -e /dev/nvidia0 && -z "$(smi name)" ]]; then
    cat "$scratch/reason"
    echo "no CUDA device: 0 run"
    exit 77
  fi
  cat "$scratch/probe"
  echo "0 passed, 1 failed"
  exit 1
fi
gpu="$(smi name)"
[[ -n "$gpu" ]] || gpu="$(sed -n 's/^device: cuda:0 //p' "$scratch/probe")"
driver="$(smi driver_version)"
[[ -n "$driver" ]] || driver="$(sed -nE 's/.*Kernel Module +([0-9.]+).*/\1/p' /proc/driver/nvidia/version 2>/dev/null)"
date="$(date -u +%Y-%m-%dT%H:%M:%SZ)"
printf 'GPU     %s\ndriver  %s\ndate    %s\ncommit  %s\n' "$gpu" "${driver:-unknown}" "$date" "$commit"

# ---- what came out: a line of the table for each stage
passed=0 failed=0
table=() json_stages=() failures=()
quoted() { # TEXT as a JSON string
  local text="${1//\\/\\\\}"
  text="${text//\"/\\\"}"
  printf '"%s"' "${text//[[:cntrl:]]/ }"
}
joined() { # SEPARATOR ITEM...
  local separator="$1" text="${2:-}"
  (($# < 3)) || printf -v text "%s$separator" "${@:2:$#-2}"
  (($# < 3)) || text+="${!#}"
  printf '%s' "$text"
}
# write_results WHOLE: all that is known. Whoever reads the file meanwhile, or after this script was killed, finds it whole.
write_results() {
  local failure json_failures=()
  for failure in "${failures[@]}"; do json_failures+=("$(quoted "$failure")"); done
  {
    printf '{"gpu": %s, "driver": %s, "date": "%s", "commit": %s, "complete": %s, "passed": %d, "failed": %d,\n' \
      "$(quoted "$gpu")" "$(quoted "$driver")" "$date" "$(quoted "$commit")" "$1" "$passed" "$failed"
    printf ' "stages": [%s],\n "failures": [%s],\n' "$(joined ', ' "${json_stages[@]}")" "$(joined ', ' "${json_failures[@]}")"
    printf ' "bench": {%s},\n "exchange": {%s},\n "torch": {%s}}\n' "$(joined ', ' "${json_bench[@]}")" \
      "$(joined ', ' "${json_exchange[@]}")" "$(joined ', ' "${json_torch[@]}")"
  } >"$results.part" && mv -f -- "$results.part" "$results"
}
record() { # STAGE PASSED FAILED SKIPPED SECONDS NOTE
  passed=$((passed + $2)) failed=$((failed + $3))
  table+=("$(printf '%-18s %7d %7d %8d %8d  %s' "$@")")
  json_stages+=("$(printf '{"stage": "%s", "passed": %d, "failed": %d, "skipped": %d, "seconds": %d, "note": %s}' \
    "$1" "$2" "$3" "$4" "$5" "$(quoted "$6")")")
  write_results false
}

# ---- tests
# gtest_names PROGRAM: its tests in full, one a line.
gtest_names() {
  "$bin/$1" --gtest_list_tests 2>/dev/null \
    | awk '/^[^ ].*\.( |$)/ { suite = $1; next } /^  / { print suite $1 }'
}
# Ended tests of a log as `OK name`, `FAILED name`, `SKIPPED name`; only their lines end with a time.
gtest_ended() { # LOG
  sed -nE 's/^\[ +(OK|FAILED|SKIPPED) +\] ([^ ,]+).*\([0-9]+ ms\)$/\1 \2/p' "$1"
}

# Every test counts once. One that ends the program, or is still running at the time limit, failed; the others after it
# run in a new process. What failed runs once more alone: after a fault in a kernel a process's later tests fail too.
run_tests() { # PROGRAM
  local program="$1" start=$SECONDS status log="$scratch/log" ended="$scratch/ended" note="" name
  local -A left=() alone=()
  while read -r name; do left["$name"]=1; done < <(gtest_names "$program")
  local count=${#left[@]} ok=0 skipped=0 broken=()
  ((count > 0)) || broken+=("$program lists no tests")
  while ((${#left[@]})); do
    GTEST_FILTER="$(IFS=:; echo "${!left[*]}")" timeout -k 10 "$limit" "$bin/$program" --gtest_color=no >"$log" 2>&1
    status=$?
    gtest_ended "$log" >"$ended"
    while read -r word name; do
      unset "left[$name]"
      case "$word" in
        OK) ok=$((ok + 1)) ;;
        SKIPPED) skipped=$((skipped + 1)) ;;
        FAILED) broken+=("$name") ;;
      esac
    done <"$ended"
    grep -vE '^\[ +(OK|RUN|SKIPPED|-+) +\]|^\[-+\]' "$log" | head -n 300
    ((${#left[@]})) || break
    name="$(sed -nE 's/^\[ RUN +\] ([^ ]+)$/\1/p' "$log" | tail -n 1)"
    if [[ -n "$name" && -n "${left[$name]:-}" ]]; then
      broken+=("$name")
      note+="ended by $name (exit code $status); "
      unset "left[$name]"
    else
      broken+=("${!left[@]}")
      note+="${#left[@]} tests did not run (exit code $status); "
      break
    fi
  done
  if ((${#broken[@]} > 1)); then
    for name in "${broken[@]}"; do
      GTEST_FILTER="$name" timeout -k 10 "$limit" "$bin/$program" >"$log" 2>&1 && alone["$name"]=1
    done
    ((${#alone[@]} == 0)) || note+="${#alone[@]} of those that failed pass alone: ${!alone[*]}; "
  fi
  failures+=("${broken[@]/#/$program: }")
  record "$program" "$ok" "${#broken[@]}" "$skipped" $((SECONDS - start)) "${note%; }"
}

memcheck() {
  local start=$SECONDS log="$scratch/memcheck" tool errors
  tool="$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)"
  if [[ ! -x "$tool" ]]; then
    record memcheck 0 0 1 0 "not run: there is no compute-sanitizer here"
    return
  fi
  timeout -k 10 "$limit" "$tool" --tool memcheck --target-processes all "$bin/unit_device" --gtest_color=no >"$log" 2>&1
  errors="$(sed -nE 's/^=+ ERROR SUMMARY: ([0-9]+) error.*/\1/p' "$log" | tail -n 1)"
  if grep -q 'Device not supported' "$log"; then
    record memcheck 0 0 1 $((SECONDS - start)) "not run: compute-sanitizer does not support this device"
  elif [[ "$errors" == 0 ]]; then
    record memcheck 1 0 0 $((SECONDS - start)) "0 errors in $(gtest_ended "$log" | grep -c '^OK ') tests"
  else
    grep -E '^=' "$log" | head -n 100
    failures+=("memcheck")
    record memcheck 0 1 0 $((SECONDS - start)) "${errors:-no summary, so unknown} errors"
  fi
}

# ---- the server
# serve NAME OPTIONS...: the demo model in float32 on a free port; sets server_pid and port.
serve() {
  local name="$1" ready=""
  shift
  mkfifo "$scratch/words.$name"
  "$bin/expertmesh" serve "$share/demo-model" --dtype float32 --port 0 "$@" \
    >"$scratch/words.$name" 2>"$scratch/server.$name" &
  server_pid=$!
  read -r -t "$limit" ready <"$scratch/words.$name"
  port="${ready##*:}"
  [[ "$port" =~ ^[0-9]+$ ]] && return 0
  cat "$scratch/server.$name"
  return 1
}
stop_server() {
  kill -TERM "$server_pid" 2>/dev/null
  wait "$server_pid"
  local status=$?
  server_pid=""
  return "$status"
}
# complete FIELDS: asks for a completion; sets connection, from which the answer comes.
complete() {
  local body="{$1, \"temperature\": 0, \"ignore_eos\": true}" LC_ALL=C
  exec {connection}<>"/dev/tcp/127.0.0.1/$port" || return 1
  printf 'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s' \
    "${#body}" "$body" >&"$connection"
}
# greedy_tokens PROMPT, a JSON string: the ids of the answer.
greedy_tokens() {
  local connection
  complete "\"prompt\": $1, \"max_tokens\": 64, \"return_token_ids\": true" || return 1
  timeout "$limit" cat <&"$connection" | grep -oE '"token_ids": ?\[[^]]*\]'
  exec {connection}>&-
}
# streamed_text PROMPT [PID]: the pieces of a long answer; PID is killed when the first of them has come.
streamed_text() {
  local connection line
  complete "\"prompt\": $1, \"max_tokens\": 200, \"stream\": true" || return 1
  while read -r -t "$limit" line <&"$connection" && [[ "$line" != data:* ]]; do :; done
  [[ -z "${2:-}" ]] || kill -KILL "$2"
  { echo "$line"; timeout "$limit" cat <&"$connection"; } | sed -nE 's/^data:.*"text": ?"(([^"\\]|\\.)*)".*/\1/p' | tr -d '\n'
  exec {connection}>&-
}
# cluster_field NAME: its values in /v1/cluster, a line each.
cluster_field() {
  local connection
  exec {connection}<>"/dev/tcp/127.0.0.1/$port" || return 1
  printf 'GET /v1/cluster HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&"$connection"
  timeout "$limit" cat <&"$connection" | grep -oE "\"$1\": ?(\"[^\"]*\"|[0-9]+)" | sed -E 's/^"[^"]*": ?"?//; s/"$//'
  exec {connection}>&-
}

# metric NAME: its value.
metric() {
  local connection
  exec {connection}<>"/dev/tcp/127.0.0.1/$port" || return 1
  printf 'GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&"$connection"
  timeout "$limit" cat <&"$connection" | sed -nE "s/^expertmesh:$1(\{.*\})? ([0-9]+).*/\2/p"
  exec {connection}>&-
}

# Each prompt of the demo model's golden.json is a test: alone, and with all others at the same time.
e2e() {
  local start=$SECONDS prompts=() i ok=0 broken=() note="" waiting
  mapfile -t prompts < <(sed -nE 's/^ *"prompt": (".*"),$/\1/p' "$share/demo-model/golden.json")
  ((${#prompts[@]})) || broken+=("e2e: golden.json has no prompts")
  for device in cpu cuda; do
    if ! serve "$device" --workers 0 --device "$device"; then
      broken+=("e2e: no server on $device")
      break
    fi
    for i in "${!prompts[@]}"; do greedy_tokens "${prompts[$i]}" >"$scratch/$device.$i"; done
    waiting=()
    for i in "${!prompts[@]}"; do
      greedy_tokens "${prompts[$i]}" >"$scratch/$device.together.$i" &
      waiting+=($!)
    done
    wait "${waiting[@]}"
    stop_server || broken+=("e2e: the server on $device did not end well")
  done
  for i in "${!prompts[@]}"; do
    for how in "" together.; do
      if [[ -s "$scratch/cpu.$i" ]] && cmp -s "$scratch/cpu.$i" "$scratch/cuda.$how$i"; then
        ok=$((ok + 1))
      else
        broken+=("e2e: other tokens for ${prompts[$i]}${how:+, at the same time as others}")
        printf 'cpu   %s\ncuda  %s\n' "$(cat "$scratch/cpu.$i")" "$(cat "$scratch/cuda.$how$i" 2>/dev/null)"
      fi
    done
  done
  ((${#broken[@]} == 0)) || cat "$scratch"/server.*
  failures+=("${broken[@]}")
  record e2e "$ok" "${#broken[@]}" 0 $((SECONDS - start)) "$note${#prompts[@]} prompts, alone and together"
}

# Several processes of one communicator on one GPU: NCCL refuses that unless told, and may take one block of it each.
export NCCL_MULTI_RANK_GPU_ENABLE=1 NCCL_MAX_CTAS=1 EXPERTMESH_NCCL_ONE_GPU=1

# Each of the servers below is a test, and the one that loses a worker.
workers() {
  local start=$SECONDS prompt ok=0 broken=() rows="" name expected long pid
  prompt="$(sed -nE 's/^ *"prompt": (".*"),$/\1/p' "$share/demo-model/golden.json" | head -n 1)"
  printf '{"coordinator": {"host": "here", "device": "cuda:0"}, "workers": [{"host": "here", "devices": ["cuda:0", "cpu"]}]}\n' \
    >"$scratch/mixed.json"
  serve workers.cpu --workers 0 || broken+=("workers: no server on the processor")
  expected="$(greedy_tokens "$prompt")"
  long="$(streamed_text "$prompt")"
  stop_server
  [[ -n "$expected" && -n "$long" ]] || broken+=("workers: no answer on the processor")
  for name in 1 2 3 mixed static; do
    case "$name" in
      mixed) serve "workers.$name" --cluster "$scratch/mixed.json" --allow-mixed-numerics ;;
      static)
        [[ "$rows" == *nccl* ]] || continue
        serve "workers.$name" --device cuda --workers 2 --worker-device cuda --static-exchange-bytes 1000000
        ;;
      *) serve "workers.$name" --device cuda --workers "$name" --worker-device cuda ;;
    esac || { broken+=("workers: no server with $name"); continue; }
    while cluster_field row_transport | grep 'not connected yet' >/dev/null && ((SECONDS - start < limit)); do
      greedy_tokens "$prompt" >/dev/null  # links come up while there are steps
    done
    rows+="$name: $(cluster_field row_transport | paste -sd,); "
    if [[ "$(greedy_tokens "$prompt")" == "$expected" ]]; then ok=$((ok + 1)); else broken+=("workers: other tokens with $name"); fi
    if [[ "$name" == 2 || "$name" == static ]]; then
      pid="$(cluster_field pid | tail -n 1)"
      if [[ "$(streamed_text "$prompt" "$pid")" == "$long" ]]; then ok=$((ok + 1)); else broken+=("workers: other text after a worker's death"); fi
    fi
    if [[ "$name" == static ]]; then
      rows+="$(metric static_steps_total) steps in the static form, $(metric graph_steps_total) as graphs; "
      if (($(metric graph_steps_total) > 0)); then ok=$((ok + 1)); else broken+=("workers: no step was a graph"); fi
    fi
    stop_server || broken+=("workers: the server with $name did not end well")
  done
  ((${#broken[@]} == 0)) || cat "$scratch"/server.workers.*
  failures+=("${broken[@]}")
  record workers "$ok" "${#broken[@]}" 0 $((SECONDS - start)) "rows by: ${rows%; }"
}

for stage in "${stages[@]}"; do
  echo "=== $stage"
  case "$stage" in
    unit_*) run_tests "$stage" ;;
    *) "$stage" ;;
  esac
done

write_results true || failed=$((failed + 1))

((${#failures[@]} == 0)) || printf 'FAILED  %s\n' "${failures[@]}"
echo
printf '%-18s %7s %7s %8s %8s\n' stage passed failed skipped seconds
printf '%s\n' "${table[@]}"
echo
echo "$passed passed, $failed failed"
((failed == 0))
