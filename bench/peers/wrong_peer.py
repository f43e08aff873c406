# SPDX-License-Identifier: Apache-2.0
"""A peer for the tests: NumPy's, with outputs a little too large, or which refuses a plan's bind number `refuses`."""
import numpy_floor

OPTIONS = ("factor", "refuses")


class Plan(numpy_floor.Plan):
    factor = 1.01
    refuses = 0
    binds = 0

    def bind(self, step):
        self.binds += 1
        if self.binds == self.refuses:
            raise NotImplementedError("no order in memory is good enough")
        return super().bind(step)

    def attend(self, query, output, key, value):
        super().attend(query, output, key, value)
        output *= self.factor


class Context(numpy_floor.Context):
    def plan(self, problem):
        return Plan(problem, self.np)


def open(threads, options):
    Plan.factor = float(options.get("factor", Plan.factor))
    Plan.refuses = int(options.get("refuses", Plan.refuses))
    return Context(numpy_floor.open(threads, {}).np)
