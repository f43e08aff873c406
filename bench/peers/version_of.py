# SPDX-License-Identifier: Apache-2.0
"""Prints the version of a distribution, or of a shared library that it brings along; exit code 1 if there is none.

Usage: version_of.py DISTRIBUTION [LIBRARY]
"""
import importlib.metadata
import re
import sys

distribution, *library = sys.argv[1:]
try:
    version = importlib.metadata.version(distribution)
except importlib.metadata.PackageNotFoundError as error:
    sys.exit(str(error))
if library:
    name = re.compile(rf"lib{re.escape(library[0])}-[0-9a-f]+\.so\.([0-9.]+)")
    found = [name.fullmatch(file.name) for file in importlib.metadata.files(distribution) or ()]
    version = next((match[1] for match in found if match), None)
    if version is None:
        sys.exit(f"{distribution} has no lib{library[0]}")
print(version)
