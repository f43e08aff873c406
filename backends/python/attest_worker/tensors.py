# SPDX-License-Identifier: Apache-2.0
"""The case's memory: tensors of requests as NumPy arrays over the mapping, and those as PyTorch tensors.

bf16 and fp8, which NumPy does not have, are int16 and uint8 there: the same bits."""
import mmap
import os

import numpy as np

from attest_worker.protocol import BadRequest, Fields

STORAGE = {
    "f32": np.float32,
    "f64": np.float64,
    "f16": np.float16,
    "bf16": np.int16,
    "i32": np.int32,
    "u8": np.uint8,
    "i8": np.int8,
    "f8_e4m3": np.uint8,
    "f8_e5m2": np.uint8,
}
MAX_RANK = 16


class Mapping:
    """A memfd, mapped for as long as an array over it lives."""

    def __init__(self, descriptor, size):
        if descriptor is None:
            raise BadRequest("request", "no descriptor came with it")
        there = os.fstat(descriptor).st_size
        if size != there or size <= 0:
            raise BadRequest("request.bytes", f"got {size}, the descriptor has {there}")
        self.memory = mmap.mmap(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self.size = size


class Tensor:
    """A tensor as a request describes it. Its dtype and shape may be wrong on purpose: look before asking for the
    array."""

    def __init__(self, json_object, place, mapping):
        fields = Fields(json_object, place)
        self.dtype = fields.take("dtype", str)
        self.shape = tuple(_integers(fields, "shape"))
        strides = _integers(fields, "strides")
        self._offset = fields.take("offset", int)
        fields.take_or("byte_offset", int, 0)  # only pointers need it
        begin, size = fields.take("begin", int), fields.take("size", int)
        fields.finish()
        if self.dtype not in STORAGE:
            raise BadRequest(fields.place("dtype"), f'got "{self.dtype}", wanted one of {", ".join(STORAGE)}')
        if len(self.shape) != len(strides) or len(self.shape) > MAX_RANK:
            raise BadRequest(fields.place("strides"), f"got {len(strides)} for {len(self.shape)} axes")
        if begin < 0 or size < 0 or begin + size > mapping.size:
            raise BadRequest(place, f"its block [{begin}, {begin + size}) is not within {mapping.size} bytes")
        if not begin <= self._offset <= begin + size:
            raise BadRequest(fields.place("offset"), f"got {self._offset}, which is not within its block")
        item = np.dtype(STORAGE[self.dtype]).itemsize
        # An axis of extent 1 may have any stride.
        self._strides = tuple(s * item if n != 1 else 0 for n, s in zip(self.shape, strides))
        self._mapping = mapping
        self._array = None

    @property
    def array(self):
        """The elements, in place. Raises BadRequest if they are not all within the memory."""
        if self._array is None:
            try:
                self._array = np.ndarray(
                    self.shape, STORAGE[self.dtype], self._mapping.memory, self._offset, self._strides
                )
            except (ValueError, TypeError, OverflowError) as error:
                raise BadRequest("request.tensors", f"elements beyond the memory: {error}") from None
        return self._array


def _integers(fields, name):
    values = fields.take(name, list)
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        raise BadRequest(fields.place(name), "wanted an array of integers")
    return values


def read_tensors(json_object, place, mapping, known):
    """The tensors of a request by name; those that are not there are None."""
    if not isinstance(json_object, dict):
        raise BadRequest(place, "wanted an object")
    for name in json_object:
        if name not in known:
            raise BadRequest(place, f'there is no tensor "{name}"')
    return {
        name: Tensor(json_object[name], f"{place}.{name}", mapping) if name in json_object else None for name in known
    }


# ----------------------------------------------------------------------------------------------------------- libraries


class NumpyLibrary:
    """Arrays as they are."""

    name = "numpy"

    def __init__(self):
        self.version = np.__version__

    def lacks(self, dtype):
        """Why it cannot have tensors of a dtype, or None."""
        return f"NumPy has no {dtype}" if dtype == "bf16" else None

    def wrap(self, array, dtype):
        """An array of the library over the same memory."""
        return array

    def unwrap(self, value, dtype, name):
        """The bits of what a function returned, after a look at its type and dtype."""
        if not isinstance(value, (np.ndarray, np.generic)):
            raise TypeError(f"{name}: got {type(value).__name__}, wanted a NumPy array")
        value = np.asarray(value)
        if value.dtype != STORAGE[dtype]:
            raise TypeError(f"{name}: got dtype {value.dtype}, wanted {np.dtype(STORAGE[dtype])}")
        return value

    def quiet(self):
        return np.errstate(all="ignore")


class TorchLibrary:
    name = "torch"

    def __init__(self):
        import torch

        self.torch = torch
        self.version = torch.__version__
        self._dtypes = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "f64": torch.float64}
        self._tensor, self._no_grad, self._from_numpy = torch.Tensor, torch.no_grad, torch.from_numpy

    def lacks(self, dtype):
        return None

    def wrap(self, array, dtype):
        tensor = self._from_numpy(array)
        return tensor.view(self._dtypes[dtype]) if dtype == "bf16" else tensor

    def unwrap(self, value, dtype, name):
        if not isinstance(value, self._tensor):
            raise TypeError(f"{name}: got {type(value).__name__}, wanted a PyTorch tensor")
        wanted = self._dtypes[dtype]
        if value.dtype != wanted:
            raise TypeError(f"{name}: got dtype {value.dtype}, wanted {wanted}")
        value = value.detach().cpu()
        return (value.contiguous().view(self.torch.int16) if dtype == "bf16" else value).numpy()

    def quiet(self):
        return self._no_grad()


LIBRARIES = {"numpy": NumpyLibrary, "torch": TorchLibrary}
