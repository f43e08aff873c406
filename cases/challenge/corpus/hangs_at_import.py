# SPDX-License-Identifier: Apache-2.0
"""Never finishes being imported."""
import time

while True:
    time.sleep(1)
