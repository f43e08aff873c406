# SPDX-License-Identifier: Apache-2.0
"""attest's side of the protocol for these tests, in a few lines: starts worker.py and asks it."""
import json
import os
import socket
import struct
import subprocess
import sys

import numpy as np

WORKER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "worker.py")
NAMES = {"float32": "f32", "float16": "f16", "int16": "bf16", "int32": "i32", "uint8": "u8", "int8": "i8"}
SENTINEL = 0x7FFF


class Parent:
    def __init__(self):
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(240)  # a machine may be busy; the whole test has 300 s
        read, write = os.pipe()
        self.log = os.fdopen(read, "rb")

        def descriptors():
            os.dup2(theirs.fileno(), 3)
            os.dup2(write, 1)
            os.dup2(write, 2)

        self.process = subprocess.Popen(
            [sys.executable, "-I", "-B", WORKER], stdin=subprocess.DEVNULL, preexec_fn=descriptors, pass_fds=(3,)
        )
        theirs.close()
        os.close(write)
        self.count = 0

    def ask(self, op, descriptor=None, **fields):
        """The reply, or None where the worker has ended instead."""
        self.count += 1
        nonce = f"{self.count:016x}"
        return self.send({"op": op, "nonce": nonce, **fields}, nonce, descriptor)

    def send(self, request, nonce, descriptor=None):
        payload = json.dumps(request).encode()
        frame = struct.pack("<I", len(payload)) + payload
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", descriptor))] if descriptor else []
        sent = self.socket.sendmsg([frame], rights)
        if sent < len(frame):  # even nothing cannot be sent to a worker that has read it all and ended
            self.socket.sendall(frame[sent:])
        data = self._read(4)
        if data is None:
            return None
        reply = json.loads(self._read(struct.unpack("<I", data)[0]))
        assert reply.pop("nonce") == nonce, reply
        return reply

    def _read(self, count):
        data = b""
        while len(data) < count:
            try:
                part = self.socket.recv(count - len(data))
            except ConnectionResetError:
                part = b""
            if not part:
                return None
            data += part
        return data

    def open(self, file, **options):
        return self.ask("open", protocol=1, library=file, options=options)

    def end(self):
        """Its exit code and what it printed."""
        self.socket.close()
        code = self.process.wait(240)
        text = self.log.read().decode()
        self.log.close()
        return code, text


class Memory:
    """A memfd with tensors, each in a block of its own."""

    def __init__(self, size=1 << 20):
        self.descriptor = os.memfd_create("test")
        os.ftruncate(self.descriptor, size)
        import mmap

        self.map = mmap.mmap(self.descriptor, size)
        self.size, self.used = size, 0
        self.all = np.frombuffer(self.map, np.uint16)
        self.all[:] = SENTINEL

    def tensor(self, value, order=None):
        """An array with these contents (a shape: with the sentinel), and how a request says it. `order`: its axes in
        memory, outermost first."""
        if isinstance(value, tuple):
            value = np.full(value, np.frombuffer(struct.pack("<HH", SENTINEL, SENTINEL), np.float32)[0], np.float32)
        value = np.asarray(value)
        order = order or range(value.ndim)
        extents = [value.shape[axis] for axis in order]
        size = max(1, value.size) * value.itemsize
        offset, self.used = self.used, (self.used + size + 511) // 256 * 256
        placed = np.frombuffer(self.map, value.dtype, value.size, offset).reshape(extents)
        array = placed.transpose(np.argsort(order)) if value.ndim else placed
        array[...] = value
        said = {
            "dtype": NAMES[value.dtype.name],
            "shape": list(array.shape),
            "strides": [s // value.itemsize for s in array.strides],
            "offset": offset,
            "begin": offset,
            "size": size,
        }
        return array, said

    def close(self):
        os.close(self.descriptor)
