# Environment of ExpertMesh's MPI processes on one host; source it (bash), then exec the coordinator. No mpirun: the
# coordinator starts as a singleton, so its own exit code counts and its output is its own; Open MPI starts a daemon
# (orted) for it at MPI_Init, which spawns the workers and ends them and itself when the coordinator is gone, however
# that came about. Every variable may be set beforehand to try another value.

em_mpi_default() { # NAME VALUE
  [[ -n "${!1:-}" ]] || printf -v "$1" '%s' "$2"
  export "${1?}"
}

# ---- jobs of others
# A Slurm job around these processes is not theirs: Open MPI's daemon would start workers on the job's nodes by itself, and
# a process in a step would look for the step's PMI.
unset "${!SLURM@}" "${!PMIX_SERVER@}" PMIX_NAMESPACE PMIX_RANK PMI_RANK PMI_SIZE PMI_FD PMI_JOBID

# ---- which fabric carries the rows
# UCX over TCP: a peer killed in the middle of a message harms nobody else. Open MPI's own TCP livelocks or aborts then,
# and shared memory between spawned processes leaves the coordinator stuck inside MPI.
em_mpi_default OMPI_MCA_pml ucx
em_mpi_default UCX_TLS tcp,self
# No rendezvous: a send that waits for a dead peer's consent never ends, and its buffer never comes back. (At 64 KiB this
# is also the faster way; at 1 MiB a quarter slower.)
em_mpi_default UCX_RNDV_THRESH inf
# Workers of this host talk over the loopback interface, those of others (serve --interface) over one more; nothing
# uses any other.
em_mpi_interfaces="lo"
[[ -z "${EXPERTMESH_INTERFACE:-}" || "$EXPERTMESH_INTERFACE" == lo ]] || em_mpi_interfaces="lo,$EXPERTMESH_INTERFACE"
em_mpi_default UCX_NET_DEVICES "$em_mpi_interfaces"
# Without these two, Open MPI takes UCX only where it finds InfiniBand, and stops with "PML ucx cannot be selected".
em_mpi_default OMPI_MCA_pml_ucx_tls any
em_mpi_default OMPI_MCA_pml_ucx_devices any
# Rows go through UCX; other transports would only open ports and shared memory.
em_mpi_default OMPI_MCA_btl self
# Named, it is not looked for: the search makes a file in /dev/shm for a moment, which a worker killed then leaves there.
em_mpi_default OMPI_MCA_shmem mmap

# ---- processes and processors
# Pollers give the core away when there is nothing to do: with more processes than cores a round trip takes
# milliseconds otherwise.
em_mpi_default OMPI_MCA_mpi_yield_when_idle 1
# As many workers as were asked for, whatever the number of cores; each chooses its own threads, so no binding.
em_mpi_default OMPI_MCA_rmaps_base_oversubscribe 1
em_mpi_default OMPI_MCA_hwloc_base_binding_policy none

# ---- deaths
# A worker that dies or ends with an error does not take the others with it.
em_mpi_default OMPI_MCA_orte_enable_recovery 1
em_mpi_default OMPI_MCA_orte_abort_on_non_zero_status 0

# ---- Open MPI's daemon
# After a death the daemon loses about every twentieth spawn with epoll: PMIx closes the dead worker's socket while it is
# still registered, so the next connection with that number is never watched (openpmix pull request 4279). libevent
# with poll watches it.
em_mpi_default EVENT_NOEPOLL 1
# Job data by message instead of shared memory: a worker killed inside MPI_Init may hold the lock of the shared one for
# ever (openpmix issue 1233), and the segments need space in the temporary folder.
em_mpi_default PMIX_MCA_gds hash
# Its messages use these interfaces. (It still listens on every interface, as Open MPI 4.1 always does.)
em_mpi_default OMPI_MCA_oob_tcp_if_include "$em_mpi_interfaces"
# Its files: a folder named after this process (which becomes the coordinator), since a killed coordinator leaves some
# behind; those of coordinators that are gone are removed at the next start.
# em_mpi_end_daemons BASE: the daemons of a run that is over. They end by themselves, but for one in a great many, which
# loses its way and keeps a core busy.
em_mpi_end_daemons() {
  local process
  for process in /proc/[0-9]*; do
    [[ -O "$process" && "$(cat "$process/comm" 2>/dev/null)" == orted ]] || continue
    grep -qzxF -- "OMPI_MCA_orte_tmpdir_base=$1" "$process/environ" 2>/dev/null && kill -9 "${process##*/}" 2>/dev/null
  done
  return 0
}
em_mpi_session_base() {
  local base="${TMPDIR:-/tmp}" old
  for old in "$base/expertmesh-mpi-$UID".*; do
    [[ -O "$old" && -d "$old" && ! -L "$old" ]] && ! kill -0 "${old##*.}" 2>/dev/null || continue
    em_mpi_end_daemons "$old"
    rm -rf -- "$old"
  done
  OMPI_MCA_orte_tmpdir_base="$base/expertmesh-mpi-$UID.$$"
  rm -rf -- "$OMPI_MCA_orte_tmpdir_base"  # of this process before it started anew, or of one of that number long ago
  (umask 077 && mkdir -- "$OMPI_MCA_orte_tmpdir_base") || return 1
  export OMPI_MCA_orte_tmpdir_base
}
[[ -n "${OMPI_MCA_orte_tmpdir_base:-}" ]] || em_mpi_session_base || return 1

# ---- name server
# Processes of other hosts find the coordinator's MPI through Open MPI's name server. It ends with this process, which
# becomes the coordinator, unless it is one for several (serve --name-server).
em_mpi_name_server() {
  local uri="$OMPI_MCA_orte_tmpdir_base/name-server" waited=0
  if [[ -n "${EXPERTMESH_NAME_SERVER:-}" ]]; then
    export OMPI_MCA_pmix_server_uri="file:$EXPERTMESH_NAME_SERVER"
    until [[ -s "$EXPERTMESH_NAME_SERVER" ]]; do
      if ((++waited > 500)); then
        echo "expertmesh: --name-server $EXPERTMESH_NAME_SERVER: no name server has written it (expertmesh name-server)" >&2
        return 1
      fi
      sleep 0.02
    done
    return 0
  fi
  export OMPI_MCA_pmix_server_uri="file:$uri"
  OMPI_MCA_oob_tcp_if_include="$EXPERTMESH_INTERFACE" setpriv --pdeathsig KILL \
    ompi-server --no-daemonize --report-uri "$uri" </dev/null >/dev/null 2>"$uri.log" &
  local server=$!
  until [[ -s "$uri" ]]; do
    kill -0 "$server" 2>/dev/null || { echo "expertmesh: Open MPI's name server did not start: $(<"$uri.log")" >&2; return 1; }
    sleep 0.02
  done
}

# ---- root
# Open MPI refuses to run as root unless told twice. In a container that is the usual user, so allow it and say so.
if [[ "$(id -u)" == 0 && -z "${OMPI_ALLOW_RUN_AS_ROOT:-}" ]]; then
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  echo "expertmesh: running as root: allowed Open MPI to do so (OMPI_ALLOW_RUN_AS_ROOT, OMPI_ALLOW_RUN_AS_ROOT_CONFIRM)" >&2
fi

# ---- /dev/shm
# Open MPI keeps a segment there even when rows travel over TCP; a full or tiny one ends in a bus error much later.
em_mpi_check_shm() {
  local wanted_kb=65536 size_kb
  size_kb="$(df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 { print $2 }')"
  if [[ -z "$size_kb" ]]; then
    echo "expertmesh: /dev/shm is missing: Open MPI needs it (mount -t tmpfs -o size=64m tmpfs /dev/shm)" >&2
    return 1
  fi
  if ((size_kb < wanted_kb)); then
    echo "expertmesh: /dev/shm has ${size_kb} KiB, Open MPI needs ${wanted_kb} KiB" \
      "(docker run --shm-size=64m …, or mount -o remount,size=64m /dev/shm)" >&2
    return 1
  fi
}
em_mpi_check_shm || return 1
[[ -z "${EXPERTMESH_INTERFACE:-}" ]] || em_mpi_name_server || return 1
