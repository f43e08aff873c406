# SPDX-License-Identifier: Apache-2.0
"""What a wheel from PyPI brings along, without importing it.

Usage: wheel.py DISTRIBUTION [LIBRARY]
Prints the version of the distribution, or of its shared library libLIBRARY; exit code 1 if there is none.
"""
import importlib.metadata
import re
import sys


def library(distribution, name):
    """(file, version) of its lib`name`, which the wheel's makers have renamed by a hash. LookupError: there is none."""
    renamed = re.compile(rf"lib{re.escape(name)}-[0-9a-f]+\.so\.([0-9.]+)")
    for file in importlib.metadata.files(distribution) or ():
        if match := renamed.fullmatch(file.name):
            return str(file.locate()), match[1]
    raise LookupError(f"{distribution} has no lib{name}")


if __name__ == "__main__":
    try:
        print(library(*sys.argv[1:])[1] if len(sys.argv) > 2 else importlib.metadata.version(sys.argv[1]))
    except (importlib.metadata.PackageNotFoundError, LookupError) as error:
        sys.exit(str(error))
