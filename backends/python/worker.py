# SPDX-License-Identifier: Apache-2.0
"""attest's worker for Python: `python3 -I -B worker.py`, started by attest with the descriptors of spec/protocol.md.

It answers `open`, and only then loads what it is told to: a submission to the challenge, or a function
(backends/python/README.md). It holds the inputs and outputs of the case at hand and nothing else.
"""
import os
import sys

# -I leaves this file's folder out. It goes again before anything foreign is imported, so that a file named like one of
# ours is still found by those who mean it.
here = os.path.dirname(os.path.realpath(__file__))
sys.path.insert(0, here)
import attest_worker.serve  # noqa: E402

sys.path.remove(here)

if __name__ == "__main__":
    attest_worker.serve.main()
