#!/usr/bin/env bash
# quickstart.sh [--once] [--port N] [options of `expertmesh serve`]: from a fresh clone to a streamed story. Installs the
# packages, builds, starts a coordinator and two workers on the demo model, streams one story and serves until
# Ctrl-C; with --once it stops everything after the story.
set -euo pipefail
cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.."

once=false
port=8000
serve_options=()
while (($#)); do
  case "$1" in
    --once) once=true ;;
    --port)
      port="${2:?--port needs a number}"
      shift
      ;;
    --port=*) port="${1#*=}" ;;
    -h | --help)
      sed -n '2,4s/^# //p' launch/quickstart.sh
      exit 0
      ;;
    *) serve_options+=("$1") ;;
  esac
  shift
done
[[ "$port" =~ ^[0-9]{1,5}$ ]] || { echo "quickstart: --port needs a number, got '$port'" >&2; exit 2; }

if [[ "$port" != 0 ]] && (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
  echo "quickstart: port $port is in use: try launch/quickstart.sh --port $((port == 65535 ? 8000 : port + 1))" >&2
  exit 1
fi

bash launch/install_packages.sh
if [[ -f build/CMakeCache.txt ]]; then
  cmake --preset release >/dev/null
else
  cmake --preset release -DEM_BUILD_TESTS=OFF >/dev/null
fi
cmake --build build --target expertmesh-coordinator expertmesh-worker

scratch="$(mktemp -d "${TMPDIR:-/tmp}/expertmesh-quickstart.XXXXXX")"
log="$scratch/log"
fail() {
  echo "quickstart: $1. What the server wrote ($log):" >&2
  cat "$log" >&2
  exit 1
}

# A process group of its own (job control): Ctrl-C reaches this script, which then asks the server to drain.
mkfifo "$scratch/ready"
set -m
launch/expertmesh serve launch/demo-model --port "$port" --workers 2 "${serve_options[@]}" >"$scratch/ready" 2>"$log" &
server_pid=$!
set +m
exec {server_out}<"$scratch/ready"
stop_server() { kill -INT "$server_pid" 2>/dev/null || true; }
trap stop_server EXIT
trap 'exit 130' INT TERM

IFS= read -r -t 120 ready_line <&"$server_out" || fail "the server did not get ready"
[[ "$ready_line" == "ExpertMesh is ready at http"* ]] || fail "the server said '$ready_line'"
url="${ready_line##* }"

printf '%s\n\n' "$ready_line"
python3 launch/stream_story.py "$url" "Once upon a time there was" || fail "the story broke off"

status=0
if $once; then
  stop_server
else
  trap stop_server INT TERM
  cat <<TRY

Try it (Ctrl-C here stops the server; its log is $log):
  curl -N $url/v1/completions -H 'Content-Type: application/json' \\
    -d '{"model": "demo-model", "prompt": "The fox said to the crow", "max_tokens": 120, "temperature": 0.7, "stream": true}'
TRY
fi
# A signal interrupts wait before the server has drained: wait again while it lives.
while true; do
  status=0
  wait "$server_pid" || status=$?
  kill -0 "$server_pid" 2>/dev/null || break
done
trap - EXIT
((status == 0)) || fail "the server ended with exit code $status"
rm -rf -- "$scratch"
