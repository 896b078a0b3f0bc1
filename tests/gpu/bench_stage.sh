# shellcheck shell=bash disable=SC2154  # some variables are run.sh's
# The stage `bench` of run.sh, which sources this. Its parts, each a line of run.sh's table:
#   bench     `expertmesh bench engine` with everything in one process
#   exchange  the same with the experts in 1 and 2 workers on the same GPU, in both forms of the exchange, and without
#             workers and without graphs, which steps in the exact form have not either: what the exchange costs
#   torch     torch_bench.py: the same model in PyTorch and transformers
# All parts of the first model come first, then the other models in one process, PyTorch, and the other exchanges: where
# a limit ends the stage, as much is known as can be.

json_bench=() json_exchange=() json_torch=()
part_log="$scratch/part"
mps="" mps_environment=() mps_is_ours="" mps_program="${EM_GPU_MPS_CONTROL:-nvidia-cuda-mps-control}"
# How rows of workers on one GPU go, the best way first, until one has worked. near: by NCCL within this host,
# which it allows on one GPU since 2.30; apart: by NCCL as between hosts, by sockets; host: with the messages.
row_ways=(near apart host)
read -ra bench_options <<<"${EM_GPU_BENCH_OPTIONS:-}"

# run_part SECONDS COMMAND...: its output is shown when it has ended.
run_part() {
  local status=0
  timeout -k 10 "$@" >"$part_log" 2>&1 </dev/null &
  part_pid=$!
  wait "$part_pid" || status=$?
  part_pid=""
  cat "$part_log"
  return "$status"
}
config_of() { # NAME
  echo "$share/bench/configs/$1.json"
}
# Why the last part was refused for its size; nothing, and false, if it was not.
needs() {
  sed -nE 's/^expertmesh: not enough memory on .*: (.*) for weights \+ (.*) for buffers.*, but (.*) of .* free may be used.*/left out: needs \1 and \2 for buffers, \3 may be used/p
           s/^expertmesh: (the KV cache.*(cannot hold|has no room).*)/left out: \1/p' "$part_log" | grep -m 1 .
}
# figures_of FILE: a line for each batch size: itself, milliseconds of a decode step, prompt tokens a second.
figures_of() {
  awk -F'[:,]' '/"batch_size"/ { batch = $2 + 0 }
                /"prefill": *{/ { in_prefill = 1 }
                /"decode": *{/ { in_prefill = 0 }
                in_prefill && /"tokens_per_second"/ { prefill = $2 + 0 }
                /"median_step_ms"/ { print batch, $2 + 0, prefill }' "$1"
}

# ---- in one process
bench_engine() { # NAME
  local start=$SECONDS file="$scratch/$1.engine.json" status=0 why
  echo "--- $1"
  run_part "$limit" "$bin/expertmesh" bench engine "$(config_of "$1")" --device cuda "${bench_options[@]}" --json "$file" \
    || status=$?
  if ((status == 0)) && [[ -s "$file" ]]; then
    json_bench+=("$(quoted "$1"): $(<"$file")")
    record bench 1 0 0 $((SECONDS - start)) "$1"
  elif why="$(needs)"; then
    record bench 0 0 1 $((SECONDS - start)) "$1: $why"
  else
    failures+=("bench: $1")
    record bench 0 1 0 $((SECONDS - start)) "$1: exit code $status"
  fi
}

# ---- MPS, by which processes compute on a GPU at the same time
mps_control() { # COMMAND
  env "${mps_environment[@]}" timeout -k 5 30 "$mps_program" <<<"$1" 2>&1
}
mps_serves() {
  [[ "$(mps_control get_server_list)" =~ ^[0-9]+ ]]
}
start_mps() {
  local folder="$scratch/mps"
  if ! command -v "$mps_program" >/dev/null; then
    mps="off, there is no $mps_program"
    return
  fi
  if mps_serves; then
    mps="on, and was before"
    return
  fi
  mkdir -p -- "$folder/pipe" "$folder/log"
  mps_environment=("CUDA_MPS_PIPE_DIRECTORY=$folder/pipe" "CUDA_MPS_LOG_DIRECTORY=$folder/log")
  mps_is_ours=1
  if env "${mps_environment[@]}" timeout -k 5 30 "$mps_program" -d >"$folder/said" 2>&1 </dev/null \
    && env "${mps_environment[@]}" timeout -k 10 120 "$bin/unit_device" \
      --gtest_filter=TestDevice.IsTheOneAskedFor >>"$folder/said" 2>&1 && mps_serves; then
    mps="on"
    return
  fi
  tail -n 20 "$folder/said" "$folder"/log/*.log 2>/dev/null
  stop_mps
  mps="off, it did not start"
}
# Only what start_mps() started.
stop_mps() {
  local pid_file="$scratch/mps/pipe/nvidia-cuda-mps-control.pid"
  [[ -n "$mps_is_ours" ]] || return 0
  mps_control quit >/dev/null || { [[ ! -s "$pid_file" ]] || kill -TERM "$(<"$pid_file")" 2>/dev/null; }
  mps_is_ours="" mps_environment=()
}

# ---- with workers
# with_workers NAME FILE OPTIONS...: by the first of row_ways that works.
with_workers() {
  local name="$1" file="$2" status way environment=("${mps_environment[@]}") transport seconds=$((limit < 300 ? limit : 300))
  shift 2
  while :; do
    way="${row_ways[0]}" status=0 transport=nccl
    [[ "$way" != near ]] || environment=(-u EXPERTMESH_NCCL_ONE_GPU "${mps_environment[@]}")
    [[ "$way" != host ]] || transport=host
    run_part "$seconds" env "${environment[@]}" "$bin/expertmesh" bench engine "$(config_of "$name")" --device cuda \
      --worker-device cuda --row-transport "$transport" "${bench_options[@]}" --json "$file" "$@" || status=$?
    if ((status == 0)) && [[ -s "$file" ]]; then
      row_ways=("$way")  # what fails from now on has another reason
      return 0
    fi
    if needs >/dev/null || ((${#row_ways[@]} == 1)); then return 1; fi
    echo "rows of workers on one GPU do not go so: $way (exit code $status)"
    row_ways=("${row_ways[@]:1}") environment=("${mps_environment[@]}")
  done
}

# As the programs count them: those that may be used, but no more than the container's share of time.
cores() {
  local cores quota period
  cores="$(nproc)"
  if read -r quota period 2>/dev/null </sys/fs/cgroup/cpu.max && [[ "$quota" != max ]] && ((quota / period < cores)); then
    cores=$((quota / period))
  fi
  echo $((cores > 0 ? cores : 1))
}

# Threads for which there are cores: with more than that processes would sleep where they now poll. Shares are equal: what a
# worker measures of a GPU that it shares says nothing.
bench_workers() { # NAME
  local start=$SECONDS name="$1" form workers threads file label why status static
  local ok=0 broken=0 left_out=0 notes=() runs=() labels=()
  [[ " ${EM_GPU_BENCH_WORKERS-qwen3moe-703m gpt-oss-20b} " == *" $name "* ]] || return 0
  if [[ ! -s "$scratch/$name.engine.json" ]]; then
    record exchange 0 0 1 0 "$name: left out: there are no figures of one process"
    return
  fi
  [[ -n "$mps" ]] || start_mps
  echo "--- $name with workers, MPS: $mps"
  for form in 'no graphs' '1 exact' '1 static' '2 exact' '2 static'; do
    workers="${form%% *}" label="${form// /_}" file="$scratch/$name.${form// /_}.json" status=0 static=0
    echo "--- $name, $form"
    if [[ "$form" == 'no graphs' ]]; then
      run_part "$limit" "$bin/expertmesh" bench engine "$(config_of "$name")" --device cuda --enforce-eager \
        "${bench_options[@]}" --json "$file" || status=$?
    elif [[ "$form" == *static && "${row_ways[0]}" == host ]]; then
      left_out=$((left_out + 1)) notes+=("$form: left out, rows do not go by NCCL")
      continue
    else
      threads=$(($(cores) / (workers + 1)))
      ((threads > 0)) || threads=1
      [[ "$form" != *static ]] || static=$((1 << 40))  # of any size
      with_workers "$name" "$file" --workers "$workers" --threads "$threads" --worker-threads "$threads" --worker-capacity 1000 \
        --micro-batches 1 --static-exchange-bytes "$static" || status=$?
    fi
    if ((status == 0)) && [[ -s "$file" ]]; then
      ok=$((ok + 1)) labels+=("$label")
      runs+=("$(quoted "$label"): $(<"$file")")
    elif why="$(needs)"; then
      left_out=$((left_out + 1)) notes+=("$form: $why")
    else
      broken=$((broken + 1)) notes+=("$form failed") failures+=("bench: $name, $form")
    fi
  done
  exchange_table "$name" "${labels[@]}"
  json_exchange+=("$(printf '%s: {"mps": %s, "rows_by": "%s", "steps": [%s], "runs": {%s}}' "$(quoted "$name")" "$(quoted "$mps")" \
    "${row_ways[0]}" "$(exchange_json "$name" "${labels[@]}")" "$(joined ', ' "${runs[@]}")")")
  record exchange "$ok" "$broken" "$left_out" $((SECONDS - start)) \
    "$name, MPS: $mps, rows by: ${row_ways[0]}$( ((${#notes[@]} == 0)) || printf '; %s' "${notes[@]}")"
}

# exchange_steps NAME LABEL...: a line for each batch size: itself, and milliseconds of a step in one process and as the
# labels say.
exchange_steps() {
  local name="$1" label
  shift
  {
    figures_of "$scratch/$name.engine.json" | sed 's/^/in_process /'
    for label in "$@"; do figures_of "$scratch/$name.$label.json" | sed "s/^/$label /"; done
  } | awk -v labels="in_process $*" '
      !(($2) in known) { known[$2]; order[++count] = $2 }
      { step[$2, $1] = $3 }
      END {
        columns = split(labels, label, " ")
        for (i = 1; i <= count; ++i) {
          printf "%d", order[i]
          for (c = 1; c <= columns; ++c) printf " %s", (order[i], label[c]) in step ? step[order[i], label[c]] : 0
          print ""
        }
      }'
}
exchange_table() { # NAME LABEL...
  local label
  printf 'exchange   %s, ms of a decode step, and the share of it that one process does not take (target: below 25%%)\n' "$1"
  printf '           MPS: %s' "$mps"
  [[ "$mps" == on* ]] || printf '; processes time-slice the GPU: what their steps take is no price of an exchange'
  printf '\n           rows by: %s\n%5s%12s' "$(row_way_words)" B 'in process'
  for label in "${@:2}"; do printf '%20s' "${label//_/ }"; done
  echo
  exchange_steps "$@" | awk '{
    printf "%5d%12.3f", $1, $2
    for (i = 3; i <= NF; ++i) if ($i > 0) printf "%12.3f%7.1f%%", $i, 100 * ($i - $2) / $i; else printf "%20s", "-"
    print ""
  }'
}
exchange_json() { # NAME LABEL...
  exchange_steps "$@" | awk -v labels="in_process ${*:2}" '{
    split(labels, label, " ")
    printf "%s{\"batch_size\": %d", (NR > 1 ? ", " : ""), $1
    for (i = 2; i <= NF; ++i) if ($i > 0) {
      printf ", \"%s_ms\": %s", label[i - 1], $i
      if (i > 2) printf ", \"%s_share\": %.4f", label[i - 1], ($i - $2) / $i
    }
    printf "}"
  }'
}
row_way_words() {
  case "${row_ways[0]}" in
    near) echo "NCCL, within the host" ;;
    apart) echo "NCCL, through sockets, as between hosts: much slower than between GPUs of one" ;;
    host) echo "the host, with the messages" ;;
  esac
}

# ---- PyTorch
bench_torch() { # NAME
  local start=$SECONDS name="$1" ours="$scratch/$1.engine.json" file="$scratch/$1.torch.json" status=0 ratios
  local python="${EM_GPU_PYTHON:-python3}"
  if [[ ! -s "$ours" ]]; then
    record torch 0 0 1 0 "$name: left out: there are no figures of ours"
    return
  fi
  if ! command -v "$python" >/dev/null; then
    record torch 0 0 1 0 "$name: left out: there is no $python"
    return
  fi
  echo "--- $name in PyTorch"
  run_part "$limit" "$python" "$here/torch_bench.py" "$(config_of "$name")" --device cuda "${bench_options[@]}" --json "$file" \
    || status=$?
  if ((status == 77)); then
    record torch 0 0 1 $((SECONDS - start)) "$name: $(tail -n 1 "$part_log")"
    return
  fi
  if [[ -s "$file" ]]; then
    ratios="$(torch_ratios "$ours" "$file")"
    printf 'ratio      %s: tokens a second of ours, over those of PyTorch\n%5s%10s%10s\n' "$name" B prefill decode
    awk '{ printf "%5d%10.2f%10.2f\n", $1, $2, $3 }' <<<"$ratios"
    json_torch+=("$(printf '%s: {"ours_over_torch": [%s], "run": %s}' "$(quoted "$name")" \
      "$(awk '{ printf "%s{\"batch_size\": %d, \"prefill\": %.4f, \"decode\": %.4f}", (NR > 1 ? ", " : ""), $1, $2, $3 }' <<<"$ratios")" \
      "$(<"$file")")")
  fi
  if ((status == 0)) && [[ -s "$file" ]]; then
    record torch 1 0 0 $((SECONDS - start)) "$name"
  else
    failures+=("bench: $name in PyTorch")
    record torch 0 1 0 $((SECONDS - start)) "$name: exit code $status"
  fi
}
# torch_ratios OURS THEIRS: a line for each batch size of both: itself, and how many times the tokens a second of prefill
# and decode.
torch_ratios() {
  awk 'NR == FNR { step[$1] = $2; prefill[$1] = $3; next }
       $1 in step && $3 > 0 && step[$1] > 0 { print $1, prefill[$1] / $3, $2 / step[$1] }' <(figures_of "$1") <(figures_of "$2")
}

bench() {
  local models name others
  local -x LC_ALL=C
  read -ra models <<<"${EM_GPU_BENCH:-qwen3moe-703m gpt-oss-20b qwen3-30b-a3b mixtral-8x7b}"
  others=("${models[@]:1}")
  bench_engine "${models[0]}"
  bench_workers "${models[0]}"
  bench_torch "${models[0]}"
  for name in "${others[@]}"; do bench_engine "$name"; done
  for name in "${others[@]}"; do bench_torch "$name"; done
  for name in "${others[@]}"; do bench_workers "$name"; done
  stop_mps
}
