# SPDX-License-Identifier: Apache-2.0
"""A peer for the tests: NumPy's, with outputs a little too large."""
import numpy_floor

OPTIONS = ("factor",)


class Plan(numpy_floor.Plan):
    factor = 1.01

    def attend(self, query, output, key, value):
        super().attend(query, output, key, value)
        output *= self.factor


class Context(numpy_floor.Context):
    def plan(self, problem):
        return Plan(problem, self.np)


def open(threads, options):
    Plan.factor = float(options.get("factor", Plan.factor))
    return Context(numpy_floor.open(threads, {}).np)
