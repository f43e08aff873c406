# SPDX-License-Identifier: Apache-2.0
"""Ends the process while it is imported, with exit code 0."""
import os

os._exit(0)
