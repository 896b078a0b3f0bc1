#!/usr/bin/env bash
# bundle.sh [--arch ARCH] [OUT_DIR]: what run.sh needs, for a machine that has a GPU and its driver but no packages: the
# programs with kernels for one architecture (90a), the libraries they need beyond glibc's, Open MPI for their workers,
# the reference checkpoints and the demo model. Leaves OUT_DIR (build-gpu/bundle) and OUT_DIR.tar.xz, of at most 30 MiB.
# There: OUT_DIR/run.sh, and the programs of OUT_DIR/bin as they are. NCCL is looked for on the machine.
set -euo pipefail

here="$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")"
root="$(readlink -f -- "$here/../..")"
build="$root/build-gpu"
arch=90a out=""
while (($#)); do
  case "$1" in
    --arch) arch="${2:-}"; shift ;;
    -*) sed -n '2,5s/^# //p' "${BASH_SOURCE[0]}"; exit 2 ;;
    *) out="$1" ;;
  esac
  shift
done
[[ "$arch" =~ ^[0-9]+[af]?$ ]] || { echo "bundle.sh: --arch '$arch': expected one such as 80 or 90a" >&2; exit 2; }
out="$(readlink -m -- "${out:-$build/bundle}")"
if [[ -e "$out" && ! -f "$out/COMMIT" ]]; then
  echo "bundle.sh: $out is there, and is no bundle" >&2
  exit 2
fi

# ---- programs
programs=(expertmesh-coordinator expertmesh-front expertmesh-worker expertmesh-bench)
tests=(unit_device unit_device_model)
cd -- "$root"
cmake --preset release -B "$build" -DEM_BUILD_TESTS=ON -DEXPERTMESH_CUDA=on "-DCMAKE_CUDA_ARCHITECTURES=$arch-real" >/dev/null
cmake --build "$build" --target "${programs[@]}" "${tests[@]}"

# tree: as cmake --install makes it, with lib/ beside. bin: scripts that tell the loader of lib/. (Links to libraries by
# place would not do: Debian's libmpi brings a search path of its own, which hides that of the program.)
rm -rf -- "$out"
mkdir -p -- "$out/bin" "$out/goldens"
cmake --install "$build" --prefix "$out/tree" --strip >/dev/null
for test in "${tests[@]}"; do install -s -- "$build/bin/$test" "$out/tree/bin/"; done
cat >"$out/bin/program" <<'SCRIPT'
#!/bin/sh
# Runs the program of its own name with the libraries and the Open MPI of this bundle.
bundle="$(readlink -f -- "$(dirname -- "$(readlink -f -- "$0")")/..")"
export LD_LIBRARY_PATH="$bundle/tree/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export OPAL_PREFIX="$bundle/tree" PATH="$bundle/tree/bin:$PATH"
exec "$bundle/tree/bin/$(basename -- "$0")" "$@"
SCRIPT
chmod +x "$out/bin/program"
for program in "${programs[@]}" "${tests[@]}" expertmesh; do cp -- "$out/bin/program" "$out/bin/$program"; done
rm -- "$out/bin/program"

# ---- Open MPI: what it finds in its prefix (OPAL_PREFIX) instead of in Debian's
mpi_plugins="$(ompi_info --path pkglibdir --parsable | sed -n 's/^path:pkglibdir://p')"
mpi_prefix="$(ompi_info --path prefix --parsable | sed -n 's/^path:prefix://p')"
plugins=()
for plugin in "$mpi_plugins"/mca_*.so; do
  case "${plugin##*/}" in
    # OpenSHMEM, and networks of hardware of its own
    mca_atomic_* | mca_memheap_* | mca_scoll_* | mca_spml_* | mca_sshmem_*) ;;
    *_ofi.so | *_openib.so | *_psm.so | *_psm2.so | mca_reachable_netlink.so) ;;
    *) plugins+=("$plugin") ;;
  esac
done
plugins_there="$out/tree${mpi_plugins#"$mpi_prefix"}"
mkdir -p -- "$plugins_there" "$out/tree/share/openmpi"
install -m 644 -s -- "${plugins[@]}" "$plugins_there/"
daemons=("$(command -v orted)" "$(command -v ompi-server)")
install -s -- "${daemons[@]}" "$out/tree/bin/"
cp -- "$mpi_prefix"/share/openmpi/help-*.txt "$out/tree/share/openmpi/"

# ---- libraries: all but glibc's, which is older or as old as the one there if this was built on an old system
for program in "${programs[@]/#/$build/bin/}" "${tests[@]/#/$build/bin/}" "${daemons[@]}" "${plugins[@]}"; do
  ldd "$program"
done >"$build/libraries"
if grep 'not found' "$build/libraries"; then exit 1; fi
awk '$2 == "=>" && $3 ~ /^\// { print $1, $3 }' "$build/libraries" | sort -u \
  | grep -vE '^lib(c|m|mvec|dl|rt|pthread|util|resolv|anl)\.so' \
  | while read -r name file; do install -m 644 -- "$(readlink -f -- "$file")" "$out/tree/lib/$name"; done
strip --strip-unneeded "$out/tree/lib/"*.so*

# ---- what they read
cp -r -- tests/goldens/models "$out/goldens/"
cp -- tests/gpu/run.sh tests/gpu/bench_stage.sh tests/gpu/torch_bench.py "$out/"
git describe --always --dirty --abbrev=12 >"$out/COMMIT"

# xz: the checkpoints share numbers and the programs code, further apart than gzip looks, and than xz does by itself.
XZ_OPT=-9 tar --sort=name --owner=0 --group=0 -C "$(dirname -- "$out")" -cJf "$out.tar.xz" "$(basename -- "$out")"
bytes="$(stat -c %s "$out.tar.xz")"
echo "$out.tar.xz: $bytes bytes, for $arch, of $(<"$out/COMMIT"), needs $(ldd --version | sed -n '1s/.* /glibc /p')"
((bytes <= 30 << 20)) || { echo "bundle.sh: more than 30 MiB" >&2; exit 1; }
