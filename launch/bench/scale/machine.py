"""What figures belong to: the machine, the programs and the model. Points of another are not mixed with these."""
import hashlib
import os
import platform
import re
import socket
import subprocess
from pathlib import Path

PROGRAMS = ("expertmesh-bench", "expertmesh-coordinator", "expertmesh-worker")


def usable_cores():
    return len(os.sched_getaffinity(0))


def _first(pattern, file, default):
    try:
        found = re.search(pattern, Path(file).read_text(), re.MULTILINE)
    except OSError:
        return default
    return found[1].strip() if found else default


def machine():
    return {"host": socket.gethostname(),
            "processor": _first(r"^model name\s*:\s*(.*)$", "/proc/cpuinfo", platform.processor() or platform.machine()),
            "usable_cores": usable_cores(),
            "memory_gb": round(int(_first(r"^MemTotal:\s*(\d+) kB$", "/proc/meminfo", "0")) * 1024 / 1e9, 1),
            "system": _first(r'^PRETTY_NAME="?([^"\n]*)', "/etc/os-release", platform.system()),
            "kernel": platform.release()}


def _digest_of_file(path):
    with path.open("rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def programs(program, folder):
    """program: the command. folder: of the programs behind it -> its version, and a digest of them all"""
    digest = hashlib.sha256()
    for name in PROGRAMS:
        if (Path(folder) / name).exists():
            digest.update(_digest_of_file(Path(folder) / name).encode())
    version = subprocess.run([program, "--version"], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=True)
    return {"version": version.stdout.strip(), "digest": digest.hexdigest()[:16]}


def model(path):
    """path: a directory or a config.json -> its name, and a digest of what decides how long a step takes: the configuration,
    and of other files the name, size and time (reading weights takes longer than measuring them)"""
    path = Path(path)
    config = path / "config.json" if path.is_dir() else path
    digest = hashlib.sha256(config.read_bytes())
    for file in sorted(path.iterdir()) if path.is_dir() else []:
        if file.is_file():
            digest.update(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}\n".encode())
    return {"path": str(path), "name": path.resolve().name if path.is_dir() else path.stem, "digest": digest.hexdigest()[:16]}


def fingerprint(of_machine, of_programs, of_model):
    parts = [of_machine[name] for name in ("host", "processor", "usable_cores")] + [of_programs["digest"], of_model["digest"]]
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]
