#!/usr/bin/env python3
"""Work that outlives its VM: an example of a Job's workload that checkpoints when its node is about to go.

It works through UNITS units and keeps what it has got in STATE_DIR/checkpoint.json. It begins where that file
ends. The file is written

- when the node's agent POSTs the notice to /checkpoint (HOOK_PORT; annotation spotpool.dev/hook),
- when the agent's relay tells of a notice (NOTICE_URL; where a hook is not wanted),
- at SIGTERM, and
- every CHECKPOINT_SECONDS, for VMs that go without a word.

Told of a notice it begins no other unit until it is over: what is done after the checkpoint would be done twice.
Ends with 0 when all is done, with 75 (try again) when there is more to do.

Python's standard library is all it needs.
"""

import json
import os
import signal
import sys
import threading
import time
import urllib.request
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

STATE_DIR = os.environ.get("STATE_DIR", "/state")
UNITS = int(os.environ.get("UNITS", "100"))
UNIT_SECONDS = float(os.environ.get("UNIT_SECONDS", "1"))
CHECKPOINT_SECONDS = float(os.environ.get("CHECKPOINT_SECONDS", "60"))
HOOK_ADDRESS = os.environ.get("HOOK_ADDRESS", "")
HOOK_PORT = os.environ.get("HOOK_PORT")
NOTICE_URL = os.environ.get("NOTICE_URL")
# A notice may be taken back: this long after its time the work goes on.
PATIENCE_SECONDS = 30
TRY_AGAIN = 75


def say(what):
    print(what, flush=True)


class Work:
    """The work, and what it must not forget."""

    def __init__(self):
        self.changed = threading.Condition()
        self.stopping = False
        self.paused_until = 0.0
        # Whether the file holds everything and no unit is under way.
        self.is_safe = False
        self.done, self.result = 0, 0
        try:
            with open(os.path.join(STATE_DIR, "checkpoint.json"), encoding="utf-8") as file:
                state = json.load(file)
            self.done, self.result = state["done"], state["result"]
        except FileNotFoundError:
            pass  # the first start; a file that cannot be read must not look like one
        say(f"begin at unit {self.done} of {UNITS}")

    def save(self):
        """All or nothing: a VM may go while the file is being written."""
        path = os.path.join(STATE_DIR, "checkpoint.json")
        with open(path + ".new", "w", encoding="utf-8") as file:
            json.dump({"done": self.done, "result": self.result}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(path + ".new", path)
        say(f"checkpoint at {self.done}")

    def work(self, unit):
        """A stand-in for what your Job really does."""
        time.sleep(UNIT_SECONDS)
        self.result += unit * unit
        say(f"unit {unit}")

    def run(self):
        """Until all is done, or until it is told to stop."""
        saved_at = time.monotonic()
        while self.done < UNITS:
            with self.changed:
                must_rest = self.stopping or time.monotonic() < self.paused_until
                if must_rest and not self.is_safe:
                    self.save()
                    self.is_safe = True
                    self.changed.notify_all()
                if self.stopping:
                    return False
                if not must_rest:
                    self.is_safe = False
            if must_rest:
                time.sleep(0.1)
                continue
            if time.monotonic() - saved_at >= CHECKPOINT_SECONDS:
                self.save()
                saved_at = time.monotonic()
            self.work(self.done)
            self.done += 1
        with self.changed:
            self.save()
            self.is_safe = True
            self.changed.notify_all()
        say(f"finished with {self.result}")
        return True

    def pause(self, until):
        """Comes back when everything is in the file. May be called any number of times."""
        with self.changed:
            self.paused_until = max(self.paused_until, until)
            self.changed.wait_for(lambda: self.is_safe)

    def stop(self, *_):
        self.stopping = True


def when_over(deadline):
    """A deadline as the agent tells it, on this process's clock, and some time more."""
    try:
        at = datetime.fromisoformat(deadline.replace("Z", "+00:00"))
        left = (at - datetime.now(timezone.utc)).total_seconds()
    except (AttributeError, TypeError, ValueError):
        left = 30.0
    return time.monotonic() + max(left, 0.0) + PATIENCE_SECONDS


def serve_hook(work):
    class Hook(BaseHTTPRequestHandler):
        def do_POST(self):
            if self.path != "/checkpoint":
                return self.send_error(404)
            length = min(int(self.headers.get("Content-Length") or 0), 1 << 20)
            told = json.loads(self.rfile.read(length))
            say(f"told of {told.get('type')} {told.get('id')}")
            work.pause(when_over(told.get("pod", {}).get("deadline")))
            # Only now may the pod go.
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer((HOOK_ADDRESS, int(HOOK_PORT)), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def listen_to_relay(work):
    def listen():
        last = None
        # The node's own address: no proxy has any business here.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while True:
            try:
                with opener.open(NOTICE_URL + "?wait=60s", timeout=90) as answer:
                    notice = json.load(answer)["notice"]
            except (OSError, ValueError, KeyError):
                notice = None
                time.sleep(1)
            # Only what empties the node concerns its pods.
            if notice and notice.get("response", "Drain") == "Drain" and notice["eventId"] != last:
                last = notice["eventId"]
                say(f"heard of {notice['type']} {last}")
                work.pause(when_over(notice["deadline"]))
            if notice:
                time.sleep(1)  # while there is a notice, the relay answers at once

    threading.Thread(target=listen, daemon=True).start()


def main():
    work = Work()
    signal.signal(signal.SIGTERM, work.stop)
    if HOOK_PORT:
        serve_hook(work)
    if NOTICE_URL:
        listen_to_relay(work)
    return 0 if work.run() else TRY_AGAIN


if __name__ == "__main__":
    sys.exit(main())
