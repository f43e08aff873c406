# SPDX-License-Identifier: Apache-2.0
"""Frames, the fields of requests, and refusals: what spec/protocol.md says of every message."""
import array
import json
import os
import socket
import struct
import traceback

VERSION = 1
CONTROL_FD = 3
MAX_PAYLOAD = 1 << 20
MAX_MESSAGE = 2000


class Refusal(Exception):
    """An answer other than ok, on its way to the reply."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


class Unsupported(Refusal):
    def __init__(self, message):
        super().__init__("unsupported", message)


class Invalid(Refusal):
    def __init__(self, message):
        super().__init__("invalid", message)


class Overflow(Refusal):
    def __init__(self, message):
        super().__init__("overflow", message)


class Failed(Refusal):
    def __init__(self, message):
        super().__init__("error", message)


class BadRequest(Refusal):
    """A request that makes no sense; its message begins with "request"."""

    def __init__(self, place, message):
        super().__init__("error", f"{place}: {message}")


class Fields:
    """The fields of an object in a request, each to be taken once. What nobody took is refused."""

    def __init__(self, json_object, place):
        if not isinstance(json_object, dict):
            raise BadRequest(place, "wanted an object")
        self._left = dict(json_object)
        self._place = place

    def place(self, name):
        return f"{self._place}.{name}"

    def take(self, name, kind):
        """A field that must be there, of this type."""
        if name not in self._left:
            raise BadRequest(self.place(name), "is missing")
        value = self._left.pop(name)
        # A bool is an int to Python.
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise BadRequest(self.place(name), f"got {json.dumps(value)[:60]}, wanted {_wanted(kind)}")
        return value

    def take_or(self, name, kind, fallback):
        return self.take(name, kind) if name in self._left else fallback

    def finish(self):
        for name in self._left:
            raise BadRequest(self.place(name), "is not known here")


_NAMES = {dict: "an object", list: "an array", str: "a string", int: "an integer", bool: "true or false"}


def _wanted(kind):
    if isinstance(kind, tuple):
        return " or ".join(_NAMES.get(one, one.__name__) for one in kind)
    return _NAMES.get(kind, kind.__name__)


def printable(text, limit=MAX_MESSAGE, lines=False):
    """Any text as valid UTF-8 of at most so many bytes, without control characters; one line, unless `lines`."""
    kept = "\n" if lines else ""
    text = "".join(c if c >= " " and c != "\x7f" or c in kept else " " for c in str(text)[: 4 * limit])
    data = text.encode("utf-8", "replace")[:limit]
    return data.decode("utf-8", "ignore").strip()


def describe(error, file=None):
    """An exception in one line: its type, its text, and where it was raised in `file`."""
    try:
        text = str(error)
    except BaseException:  # an exception of a foreign class may raise when it is asked for its text
        text = "(its text cannot be read)"
    line = type(error).__name__ + (f": {text}" if text else "")
    places = [f for f in traceback.extract_tb(error.__traceback__) if file is not None and f.filename == file]
    if places:
        line += f" (line {places[-1].lineno} of {os.path.basename(file)})"
    return printable(line)


def trace_of(error, file):
    """The last lines of an exception's traceback, from the frame on that is in `file`."""
    frames = traceback.extract_tb(error.__traceback__)
    first = next((i for i, f in enumerate(frames) if f.filename == file), 0)
    text = "".join(traceback.format_list(frames[first:])) + describe(error)
    return printable(text[-3000:], 3000, lines=True)


class Channel:
    """The control socket."""

    def __init__(self, fd=CONTROL_FD):
        os.set_inheritable(fd, False)
        self._socket = socket.socket(fileno=fd)

    def receive(self):
        """The next request and the descriptor that came with it, or None; None where the other side is gone."""
        data, descriptors = self._first(4)
        if not data:
            return None
        data += self._exactly(4 - len(data))
        (length,) = struct.unpack("<I", data)
        if length > MAX_PAYLOAD:
            raise ValueError(f"a frame of {length} bytes, the limit is {MAX_PAYLOAD}")
        request = json.loads(self._exactly(length).decode("utf-8"))
        if not isinstance(request, dict):
            raise ValueError("no JSON object")
        return request, descriptors[0] if descriptors else None

    def send(self, reply):
        payload = json.dumps(reply, allow_nan=False).encode("ascii")
        if len(payload) > MAX_PAYLOAD:
            apology = {"nonce": reply.get("nonce"), "status": "error", "message": "the reply is too long"}
            payload = json.dumps(apology).encode("ascii")
        self._socket.sendall(struct.pack("<I", len(payload)) + payload)

    def _first(self, count):
        descriptors = array.array("i")
        data, ancillary, _, _ = self._socket.recvmsg(
            count, socket.CMSG_SPACE(4 * descriptors.itemsize), socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
        for extra in descriptors[1:]:
            os.close(extra)
        return data, descriptors[:1]

    def _exactly(self, count):
        parts = []
        while count > 0:
            part = self._socket.recv(min(count, 1 << 16))
            if not part:
                os._exit(0)  # the other side is gone; there is nobody to answer
            parts.append(part)
            count -= len(part)
        return b"".join(parts)
