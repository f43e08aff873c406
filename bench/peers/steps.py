# SPDX-License-Identifier: Apache-2.0
"""What the peers' modules share: the sequences of a step, whichever form its tensors have."""
def same_everywhere(step):
    """Whether all sequences have the same lengths, so that one call can take the whole batch."""
    return all(len(set(counts)) == 1 for counts in (step.queries, step.past, step.keys))


class Views:
    """The tensors of a step as arrays of a library; `view` makes one of (memory, dtype, shape, strides)."""

    def __init__(self, problem, step, view):
        self.problem, self.step = problem, step
        self.query, self.output = view(step.query), view(step.output)
        self.key = None if step.key is None else view(step.key)
        self.value = None if step.value is None else view(step.value)
        self.cache_key = None if step.cache_key is None else view(step.cache_key)
        self.cache_value = None if step.cache_value is None else view(step.cache_value)

    def _tokens(self, array, b, start, count):
        return array[start[b] : start[b] + count] if self.problem.packed else array[b, :count]

    def queries(self, b):
        """[Sq, Hq, Dk] of a sequence."""
        return self._tokens(self.query, b, self.step.query_start, self.step.queries[b])

    def outputs(self, b):
        return self._tokens(self.output, b, self.step.query_start, self.step.queries[b])

    def appended(self, b):
        """Pairs (where to, what), each [Sk, Hk, D], of a sequence; none without a cache or without keys."""
        count, past = self.step.keys[b], self.step.past[b]
        if self.cache_key is None or self.key is None or count == 0:
            return []
        start = self.step.key_start
        return [
            (self.cache_key[b, past : past + count], self._tokens(self.key, b, start, count)),
            (self.cache_value[b, past : past + count], self._tokens(self.value, b, start, count)),
        ]

    def keys(self, b):
        """Keys and values [total, Hk, D] that a sequence attends to."""
        total = self.step.past[b] + self.step.keys[b]
        if self.cache_key is not None:
            return self.cache_key[b, :total], self.cache_value[b, :total]
        start = self.step.key_start
        return self._tokens(self.key, b, start, total), self._tokens(self.value, b, start, total)

    def whole(self):
        """(query, output, appended, key, value) of the whole batch with equal lengths, each [B, tokens, H, D]."""
        step = self.step
        queries, past, fresh = step.queries[0], step.past[0], step.keys[0]
        if self.cache_key is None:
            return self.query[:, :queries], self.output[:, :queries], [], self.key[:, :fresh], self.value[:, :fresh]
        pairs = []
        if self.key is not None and fresh > 0:
            pairs = [
                (self.cache_key[:, past : past + fresh], self.key[:, :fresh]),
                (self.cache_value[:, past : past + fresh], self.value[:, :fresh]),
            ]
        total = past + fresh
        return (self.query[:, :queries], self.output[:, :queries], pairs, self.cache_key[:, :total],
                self.cache_value[:, :total])
