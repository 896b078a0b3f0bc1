"""A folder for what is needed for a moment."""
import contextlib
import signal
import tempfile
from pathlib import Path


@contextlib.contextmanager
def scratch_folder():
    """-> its path; it goes in the end, also where a signal comes when it has only just been made"""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="expertmesh-plan-") as folder:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield Path(folder)
