"""Python modules that Debian packages are for Debian's interpreter, which need not be the first on PATH."""
import importlib
import os
import sys

DEBIANS = "/usr/bin/python3"


def needs(*modules):
    """The test goes on from its start in Debian's interpreter, if this one lacks one of the modules."""
    try:
        for module in modules:
            importlib.import_module(module)
    except ImportError:
        if sys.executable == DEBIANS:
            raise
        os.execv(DEBIANS, [DEBIANS, "-B", *sys.argv])
