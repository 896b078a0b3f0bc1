"""Has the plots drawn, by a Python that has matplotlib: Debian's package is for Debian's interpreter, which need not be this
one."""
import json
import subprocess
import sys
from pathlib import Path

DEBIANS = "/usr/bin/python3"
NO_MATPLOTLIB = 3  # exit code of draw_plots.py


class PlotsMissing(Exception):
    """What to install."""


def draw(folder):
    """Draws what folder's results.json has -> [[file, title]] of what lies beside it then"""
    script = Path(__file__).with_name("draw_plots.py")
    for interpreter in dict.fromkeys((sys.executable, DEBIANS)):
        try:
            done = subprocess.run([interpreter, "-B", script, folder], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False)
        except OSError:
            continue  # no such interpreter
        if done.returncode == 0:
            return json.loads(done.stdout)
        if done.returncode != NO_MATPLOTLIB:
            raise PlotsMissing(f"{script.name} failed with exit code {done.returncode}")
    raise PlotsMissing("there is no matplotlib here: install the package python3-matplotlib, then the same command draws them")
