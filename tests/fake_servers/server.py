"""A stand-in for `python -m lmdeploy` with faults that the real one cannot be made to show.

    python server.py BEHAVIOUR serve api_server MODEL --server-port PORT ...

It speaks /health and /v1/models, as much of LMDeploy's server as lab3/serve.py looks at.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HEALTH = {"status": 200}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body, status = {}, 200
        if self.path == "/health":
            status = HEALTH["status"]
        elif self.path == "/v1/models":
            body = {"object": "list", "data": [{"id": NAME, "object": "model"}]}
        payload = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)
        if self.path == "/v1/die":
            say("Traceback (most recent call last):\ntorch.OutOfMemoryError: CUDA out of memory.")
            os._exit(1)


def say(text):
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def listen():
    say("INFO:     Uvicorn running")
    ThreadingHTTPServer((HOST, PORT), Handler).serve_forever()


def ready():
    listen()


def slow():
    for shard in range(3):
        sys.stdout.write(f"\rLoading weights: {shard + 1}/3")
        sys.stdout.flush()
        time.sleep(0.5)
    listen()


def never_ready():
    say("Loading for ever")
    time.sleep(600)


def unhealthy():
    HEALTH["status"] = 503
    listen()


def ready_then_dead():
    threading.Timer(1.0, lambda: os._exit(1)).start()
    listen()


def exits_0():
    say("nothing to do")


def out_of_memory():
    say("lmdeploy - INFO - loading")
    say("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.")
    say("RPCServerDeadError: PyTorch ZMQ engine process is not alive.")
    sys.exit(1)


def oom_killed():
    os.kill(os.getpid(), signal.SIGKILL)


def ignores_sigterm():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    listen()


def leaves_daemon():
    """A grandchild in its own session, without our environment, whose parent is gone: mirakuru cannot see it."""
    sleeper = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    launcher = (
        f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {sleeper!r}], env={{}},"
        " start_new_session=True, stdout=-3, stderr=-3); print(p.pid)"
    )
    pid = subprocess.run([sys.executable, "-c", launcher], capture_output=True, text=True, check=True).stdout
    Path(os.environ["DAEMON_PID_FILE"]).write_text(pid)
    listen()


ENGINE = """
import pathlib, signal, sys, time
def end(*_):
    pathlib.Path(sys.argv[1]).write_text("closed")
    sys.exit()
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
time.sleep(600)
"""


def crashes_and_leaves_engine():
    """As LMDeploy's api_server does when it is killed: its engine process, not a daemon, stays."""
    pid_file = os.environ["DAEMON_PID_FILE"]
    engine = subprocess.Popen([sys.executable, "-c", ENGINE, f"{pid_file}.closed"], stdout=subprocess.PIPE)
    engine.stdout.readline()
    Path(pid_file).write_text(str(engine.pid))
    os._exit(1)


def stubborn_engine():
    """Ready, with an engine process that ignores SIGTERM and has much memory, so that even SIGKILL takes a while."""
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); block = b'x' * (500 << 20)"
    code += "; print(1, flush=True); time.sleep(600)"
    engine = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    engine.stdout.readline()
    listen()


parser = argparse.ArgumentParser()
parser.add_argument("behaviour")
parser.add_argument("words", nargs=3)
parser.add_argument("--server-name", default="127.0.0.1")
parser.add_argument("--server-port", type=int, required=True)
parser.add_argument("--model-name", default="fake")
args, _ = parser.parse_known_args()
HOST, PORT, NAME = args.server_name, args.server_port, args.model_name
globals()[args.behaviour]()
