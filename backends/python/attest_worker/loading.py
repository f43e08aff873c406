# SPDX-License-Identifier: Apache-2.0
"""Loads the file that is asked for, as a module of its own name. Nothing foreign runs in this process before."""
import importlib.machinery
import importlib.util
import os
import re
import sys

from attest_worker.protocol import Failed, describe


def load(path):
    """Runs a Python file. What it imports is looked for beside it first, as when it is run as a program."""
    if not os.path.isfile(path):
        raise Failed(f"{path}: no such file")
    name = os.path.splitext(os.path.basename(path))[0]
    if name in sys.modules or not name.isidentifier():
        name = "attest_loaded_" + re.sub(r"\W", "_", name)
    loader = importlib.machinery.SourceFileLoader(name, path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_file_location(name, path, loader=loader))
    folder = os.path.dirname(os.path.abspath(path))
    if folder not in sys.path:
        sys.path.insert(0, folder)
    sys.modules[name] = module  # before it runs: dataclasses and imports of itself look there
    try:
        loader.exec_module(module)
    except SystemExit:
        raise
    except BaseException as error:
        sys.modules.pop(name, None)
        raise Failed(f"{path}: cannot be loaded: {describe(error, path)}") from error
    return module


def table_name(path, member=""):
    """A backend's name for a report."""
    stem = os.path.splitext(os.path.basename(path))[0]
    text = stem if member in ("", stem) else f"{stem}-{member}"
    return re.sub(r"[^a-z0-9_-]", "_", text.lower()) or "python"
