# SPDX-License-Identifier: Apache-2.0
"""The requests of spec/protocol.md, and the loop that answers them."""
import os
import sys
import threading
import time

from attest_worker.protocol import (
    VERSION, BadRequest, Channel, Fields, Invalid, Refusal, describe, printable, trace_of,
)  # fmt: skip


class Session:
    def __init__(self):
        self.backend = None
        self.plans = {}
        self.mappings = {}
        self.closed = False

    def answer(self, request, descriptor):
        """The reply to a request; what goes wrong becomes its status. Only SystemExit passes."""
        reply = {"status": "ok", "message": ""}
        try:
            fields = Fields(request, "request")
            fields.take("nonce", str)
            self._serve(fields, descriptor, reply)
        except SystemExit:
            raise
        except BaseException as error:  # whatever the loaded code has raised: nobody presses keys here
            reply.update(self._refused(error))
        if isinstance(request.get("nonce"), str):
            reply["nonce"] = request["nonce"]
        return reply

    def _refused(self, error):
        if isinstance(error, Refusal):
            return {"status": error.status, "message": printable(error)}
        file = self.backend.file if self.backend else None
        return {
            "status": "error",
            "message": describe(error, file),
            "details": {"traceback": trace_of(error, file)},
        }

    def _serve(self, fields, descriptor, reply):
        op = fields.take("op", str)
        if op == "open":
            return self._open(fields, reply)
        if op == "close":
            fields.finish()
            self.closed = True
            self.plans.clear()
            self.mappings.clear()
            return None
        if op == "run":
            reply["seconds"] = 0.0  # there in every reply to run
        operations = {
            "prepare": self._prepare,
            "run": self._run,
            "run_together": self._run_together,
            "release": self._release,
            "probe": self._probe,
        }
        if op not in operations:
            raise BadRequest(fields.place("op"), f'got "{op}", which this worker does not know')
        if self.backend is None:
            raise BadRequest("request", "no backend is open")
        if op == "prepare":
            return self._prepare(fields, descriptor)
        return operations[op](fields, reply)

    def _open(self, fields, reply):
        if self.backend is not None:
            raise BadRequest("request", "a backend is open already")
        version = fields.take("protocol", int)
        if version != VERSION:
            raise BadRequest(fields.place("protocol"), f"got {version}, this worker speaks {VERSION}")
        path = fields.take("library", str)
        options = dict(fields.take("options", dict))
        fields.finish()
        if not all(isinstance(value, str) for value in options.values()):
            raise BadRequest(fields.place("options"), "wanted strings")
        kind = options.pop("kind", "function")
        # Both import NumPy, and one of them PyTorch: neither is needed to answer what came before.
        if kind == "function":
            from attest_worker.functions import FunctionBackend as Backend
        elif kind == "challenge":
            from attest_worker.challenge import ChallengeBackend as Backend
        else:
            raise Invalid(f'option kind: got "{kind}", wanted function or challenge')
        self.backend = Backend(path, options)
        reply.update(self.backend.table)

    def _prepare(self, fields, descriptor):
        from attest_worker.problem import read_prepare
        from attest_worker.tensors import Mapping

        number = fields.take("plan", int)
        self._forget(number)
        mapping = Mapping(descriptor, fields.take("bytes", int))
        problem = read_prepare(fields, mapping)
        self.plans[number] = self.backend.prepare(problem)
        self.mappings[number] = mapping

    def _forget(self, number):
        self.plans.pop(number, None)
        self.mappings.pop(number, None)

    def _plan(self, fields):
        number = fields.take("plan", int)
        if number not in self.plans:
            raise BadRequest(fields.place("plan"), f"got {number}, which is not prepared")
        return number

    def _release(self, fields, reply):
        number = self._plan(fields)
        fields.finish()
        self._forget(number)

    def _probe(self, fields, reply):
        plan = self.plans[self._plan(fields)]
        what = fields.take("what", str)
        arguments = Fields(fields.take("arguments", dict), fields.place("arguments"))
        fields.finish()
        if not hasattr(plan, "probe"):
            raise BadRequest(fields.place("op"), "got \"probe\", which only the kind challenge knows")
        reply["details"] = plan.probe(what, arguments)

    def _step(self, fields):
        """A step that is yet to be made."""
        from attest_worker.problem import STEP_TENSORS
        from attest_worker.tensors import read_tensors

        number = self._plan(fields)
        tensors = read_tensors(fields.take("tensors", dict), fields.place("tensors"), self.mappings[number],
                               STEP_TENSORS)  # fmt: skip
        numbers = {name: fields.take(name, int) for name in ("max_query_length", "max_total_length")}
        for name in ("upload", "download"):
            fields.take(name, list)  # for devices
        fields.finish()
        return number, Step(self, self.plans[number], tensors, numbers)

    def _run(self, fields, reply):
        _, step = self._step(fields)
        step.call()
        reply.update(step.reply)
        step.pass_on()

    def _run_together(self, fields, reply):
        runs = fields.take("runs", list)
        fields.finish()
        steps = {}
        for i, run in enumerate(runs):
            one = Fields(run, f"request.runs[{i}]")
            number, step = self._step(one)
            if number in steps:
                raise BadRequest(one.place("plan"), f"got {number} twice; a plan runs in one thread")
            steps[number] = step
        start = threading.Barrier(max(1, len(steps)))

        def call(step):
            start.wait()
            step.call()

        threads = [threading.Thread(target=call, args=(step,)) for step in steps.values()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for step in steps.values():
            step.pass_on()
        reply["replies"] = [{k: v for k, v in step.reply.items() if k != "details"} for step in steps.values()]


class Step:
    """One call of a plan, and its answer."""

    def __init__(self, session, plan, tensors, numbers):
        self.session, self.plan, self.tensors, self.numbers = session, plan, tensors, numbers
        self.reply = {"status": "ok", "message": "", "seconds": 0.0}
        self.exit = None

    def call(self):
        start = time.perf_counter()
        try:
            self.plan.run(self.tensors, self.numbers)
        except SystemExit as request:  # in a thread it would end the thread alone
            self.exit = request
        except BaseException as error:
            self.reply.update(self.session._refused(error))
        self.reply["seconds"] = max(0.0, time.perf_counter() - start)

    def pass_on(self):
        if self.exit is not None:
            raise self.exit


def flush():
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # the loaded code may have put anything there, or closed it
            pass


def main():
    try:
        channel = Channel()
    except OSError:
        print("worker.py: descriptor 3 is no socket; attest starts this program", file=sys.stderr)
        sys.exit(2)
    # What was printed last is worth most when the process has crashed.
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    session = Session()
    while not session.closed:
        try:
            received = channel.receive()
        except (ValueError, RecursionError) as error:
            print(f"worker.py: the request is no JSON object: {error}", file=sys.stderr)
            sys.exit(2)
        if received is None:
            flush()
            os._exit(0)
        request, descriptor = received
        reply = session.answer(request, descriptor)
        if descriptor is not None:
            os.close(descriptor)
        flush()
        channel.send(reply)
    flush()
    # Threads that the loaded code has left must not keep the process: it was closed in order.
    os._exit(0)
