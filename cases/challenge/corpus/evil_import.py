# SPDX-License-Identifier: Apache-2.0
"""Raises, while it is imported, what is no Exception and exits when it is asked for its text."""


class Evil(BaseException):
    def __str__(self):
        raise SystemExit(0)


raise Evil
