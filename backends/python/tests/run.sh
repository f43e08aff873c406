#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs a test with a Python that has a module, chosen as attest chooses (runner/python.h); without one it is skipped.
# Usage: run.sh torch|numpy command...; the word `python` in the command stands for that Python.
set -euo pipefail

module=$1
shift
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
for python in ${ATTEST_PYTHON:+"$ATTEST_PYTHON"} "$root/build/python/bin/python3" /usr/bin/python3 python3; do
  if "$python" -I -c 'import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, sys.argv[1:])))' \
    numpy "$module" 2>/dev/null; then
    ATTEST_PYTHON=$(command -v "$python")
    export ATTEST_PYTHON
    for word; do
      if [[ $word == python ]]; then word=$ATTEST_PYTHON; fi
      command+=("$word")
    done
    exec "${command[@]}"
  fi
done
echo "skipped: no Python here has NumPy and $module; ci/setup --grading installs them"
exit 77
