#!/usr/bin/env bash
# install_packages.sh [--tests] [--long]: installs what building and running needs, from the packages of Debian 12 or
# Ubuntu 24.04. Does nothing, and needs no rights, when all of it is there.
#   --tests  also what the test suite needs     --long  also what its long form needs
set -euo pipefail

packages=(
  g++ cmake ninja-build ccache pkg-config ca-certificates git curl
  libopenmpi-dev libpmix-dev openmpi-bin libhwloc-dev
  libboost-dev nlohmann-json3-dev libcli11-dev libspdlog-dev libpcre2-dev libutf8proc-dev prometheus-cpp-dev libssl-dev
  python3 python3-jinja2
)
daemons=()  # tests start their own: the system's are not to start
for argument in "$@"; do
  case "$argument" in
    --tests)
      daemons+=(openssh-server munge slurmctld slurmd)
      packages+=(libgtest-dev libbenchmark-dev clang-format iproute2 slurm-client "${daemons[@]}")
      packages+=(python3-kubernetes python3-yaml python3-matplotlib)
      packages+=(g++-aarch64-linux-gnu qemu-user)  # the kernels for other processors
      if grep -qs '^ID=debian' /etc/os-release; then packages+=(chromium); fi  # Ubuntu has it as a snap only
      ;;
    --long) packages+=(clang clang-tidy debootstrap python3-venv xz-utils) ;;
    *)
      echo "usage: install_packages.sh [--tests] [--long]" >&2
      exit 2
      ;;
  esac
done

by_hand() {
  echo "install_packages: $1. Install these packages, or what your system calls them, by hand:" >&2
  echo "  ${packages[*]}" >&2
  exit 1
}

command -v dpkg-query apt-get >/dev/null || by_hand "this system has no apt (Debian 12 and Ubuntu 24.04 are supported)"

missing=()
for package in "${packages[@]}"; do
  [[ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)" == installed ]] || missing+=("$package")
done
((${#missing[@]})) || exit 0

as_root=()
if [[ "$(id -u)" != 0 ]]; then
  command -v sudo >/dev/null || by_hand "packages are missing, and this is neither root nor is there sudo"
  as_root=(sudo)
fi

# Debian starts what it installs unless this file says no, and at the next start of the machine unless it is disabled.
policy=/usr/sbin/policy-rc.d
new_daemons=()
for package in "${daemons[@]}"; do
  [[ " ${missing[*]} " != *" $package "* ]] || new_daemons+=("$package")
done
if ((${#new_daemons[@]})) && [[ ! -e "$policy" ]]; then
  printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
  "${as_root[@]}" chmod 755 "$policy"
  trap '"${as_root[@]}" rm -f "$policy"' EXIT
fi

echo "install_packages: installing ${missing[*]}" >&2
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null \
  || by_hand "apt-get could not install ${missing[*]}"
for package in "${new_daemons[@]}"; do
  for unit in $(dpkg-query -L "$package" | sed -nE 's|.*/systemd/system/([^/@]+\.(service\|socket))$|\1|p'); do
    "${as_root[@]}" systemctl --quiet disable "$unit" 2>/dev/null || true
  done
done
