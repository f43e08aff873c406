# SPDX-License-Identifier: Apache-2.0
"""The parts of worker.py: protocol (frames, requests, statuses), tensors (the shared memory), problem (what a case
asks, and whether a step is legal), loading, serve (the requests), and what can be loaded: challenge, functions."""
