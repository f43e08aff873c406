# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime's attention as a peer: com.microsoft.GroupQueryAttention on its CPU provider.

The operator appends and attends in one, in caches [B, Hk, C, D] that input and output share: the form in which its
generators use it. All tensors are bound by address, once for each step's memory, so that a step is one call of run.
As many threads as cores, and they may spin, as by default.

A cache in another order in memory ([B, C, Hk, D]) would have to be copied twice a step, which is no measurement of
this operator; it is refused. So are sequences with different numbers of queries, which it has no form for.
"""
import numpy as np
import onnxruntime
import steps
from onnx import TensorProto, helper

OPTIONS = ()
TYPES = {"f32": TensorProto.FLOAT, "f16": TensorProto.FLOAT16}


def model(problem):
    kind = TYPES[problem.dtype]
    width, kv_width = problem.query_heads * problem.qk_head_dim, problem.kv_heads * problem.qk_head_dim
    cache = [problem.batch, problem.kv_heads, problem.capacity, problem.qk_head_dim]
    inputs = [
        helper.make_tensor_value_info("query", kind, [problem.batch, "tokens", width]),
        helper.make_tensor_value_info("key", kind, [problem.batch, "tokens", kv_width]),
        helper.make_tensor_value_info("value", kind, [problem.batch, "tokens", kv_width]),
        helper.make_tensor_value_info("past_key", kind, cache),
        helper.make_tensor_value_info("past_value", kind, cache),
        helper.make_tensor_value_info("seqlens_k", TensorProto.INT32, [problem.batch]),
        helper.make_tensor_value_info("total_sequence_length", TensorProto.INT32, [1]),
    ]
    outputs = [
        helper.make_tensor_value_info("output", kind, [problem.batch, "tokens", width]),
        helper.make_tensor_value_info("present_key", kind, cache),
        helper.make_tensor_value_info("present_value", kind, cache),
    ]
    node = helper.make_node(
        "GroupQueryAttention",
        [value.name for value in inputs],
        [value.name for value in outputs],
        domain="com.microsoft",
        num_heads=problem.query_heads,
        kv_num_heads=problem.kv_heads,
        scale=problem.scale,
    )
    graph = helper.make_graph([node], "attention", inputs, outputs)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def compact(name, given):
    """The address of a tensor whose numbers lie one after another in the order of its axes."""
    memory, _, shape, strides = given
    expected = 1
    for extent, stride in zip(reversed(shape), reversed(strides)):
        if extent > 1 and stride != expected:
            raise NotImplementedError(f"{name}: GroupQueryAttention wants {list(shape)} as its order in memory")
        expected *= extent
    return np.frombuffer(memory, np.uint8).ctypes.data


class Plan:
    def __init__(self, problem, threads):
        if problem.dtype not in TYPES:
            raise NotImplementedError(f"GroupQueryAttention on the CPU has no {problem.dtype}")
        if not problem.cached:
            raise NotImplementedError("GroupQueryAttention has no form without a cache")
        if problem.packed:
            raise NotImplementedError("GroupQueryAttention on the CPU has no packed sequences")
        if problem.qk_head_dim != problem.v_head_dim or not problem.causal:
            raise NotImplementedError("GroupQueryAttention is causal, and its values are as wide as its keys")
        self.problem = problem
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(model(problem), options, providers=["CPUExecutionProvider"])

    def bind(self, step):
        problem, queries = self.problem, step.queries[0]
        if step.key is None or set(step.queries) != {queries} or step.queries != step.keys or queries == 0:
            raise NotImplementedError("query_lengths: GroupQueryAttention wants as many keys as queries, "
                                      "the same for all sequences")
        past = set(step.past)
        if queries > 1 and len(past) > 1:
            raise NotImplementedError("cache.lengths: GroupQueryAttention wants the same for all sequences of a chunk")
        kind = {"f32": np.float32, "f16": np.float16}[problem.dtype]
        binding = self.session.io_binding()
        kept = [step]  # what the addresses lie in

        def array(values):
            kept.append(np.array(values, np.int32))
            return kept[-1].ctypes.data

        rows = (problem.batch, queries)
        for name, given in (("query", step.query), ("key", step.key), ("value", step.value), ("output", step.output)):
            shape = (*rows, given[2][2] * given[2][3])
            if given[2][1] != queries and problem.batch > 1:
                raise NotImplementedError(f"{name}: ONNX Runtime has no form for padded tokens")
            bind = binding.bind_output if name == "output" else binding.bind_input
            bind(name, "cpu", 0, kind, shape, compact(name, given))
        for name, given in (("key", step.cache_key), ("value", step.cache_value)):
            memory, dtype, (batch, capacity, heads, width), (b, t, h, d) = given
            heads_first = (memory, dtype, (batch, heads, capacity, width), (b, h, t, d))
            address = compact(f"cache.{name} as [B, Hk, C, D]", heads_first)
            binding.bind_input(f"past_{name}", "cpu", 0, kind, heads_first[2], address)
            binding.bind_output(f"present_{name}", "cpu", 0, kind, heads_first[2], address)
        totals = [before + fresh for before, fresh in zip(step.past, step.keys)]
        binding.bind_input("seqlens_k", "cpu", 0, np.int32, (problem.batch,), array([total - 1 for total in totals]))
        binding.bind_input("total_sequence_length", "cpu", 0, np.int32, (1,), array([max(totals)]))
        session = self.session

        def run():
            session.run_with_iobinding(binding)

        run.kept = kept
        return run


class Context:
    def __init__(self, threads):
        self.threads = threads

    def plan(self, problem):
        return Plan(problem, self.threads)


def open(threads, options):
    return Context(threads)
