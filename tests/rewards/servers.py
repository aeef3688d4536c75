"""Servers for the tests of remote rewards, and pictures for them."""

import json
import random
import struct
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import torch


def eight_bit(n, size=8, seed=0):
    """Pictures of 8-bit values, (n, 3, size, size)."""
    levels = torch.randint(256, (n, 3, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return levels.float() / 255


@contextmanager
def running(server):
    """The server answers within; yields its URL."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class OddServer(ThreadingHTTPServer):
    """Speaks the format as `serve.py` describes it, and does to each request what the script says.

    The reward of a picture is its first value, from 0 to 255, plus 256 times its second.
    """

    request_queue_size = 128

    def __init__(self, *script):
        self.script = list(script)
        self.requests = 0
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), OddHandler)

    def handle_error(self, request, client_address):
        pass


class OddHandler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(200, {"reward": "odd"})

    def do_POST(self):
        with self.server.lock:
            self.server.requests += 1
            what = self.server.script.pop(0) if self.server.script else "right"
        (length,) = struct.unpack(">I", self.rfile.read(4))
        header = json.loads(self.rfile.read(length))
        shape = (len(header["pictures"]), header["height"], header["width"], 3)
        pixels = np.frombuffer(self.rfile.read(int(np.prod(shape))), np.uint8).reshape(shape[0], -1).astype(int)
        rewards = {p["id"]: float(row[0] + 256 * row[1]) for p, row in zip(header["pictures"], pixels, strict=True)}
        ids, token = list(rewards), header["id"]
        if what == "slow":
            time.sleep(0.6)
        elif what == "any moment":
            time.sleep(random.SystemRandom().uniform(0, 0.02))
            random.SystemRandom().shuffle(ids)
            rewards = {id_: rewards[id_] for id_ in ids}
        elif what == "cut off":
            self.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: 1000\r\n\r\n{")
            return
        elif what == "no answer":
            return
        elif what == "garbage":
            rewards, token = None, "<html>"
        elif what in ("nan", "text", "yes", "huge"):
            rewards[ids[-1]] = {"nan": float("nan"), "text": "1.0", "yes": True, "huge": 10**400}[what]
        elif what == "one too few":
            del rewards[ids[0]]
        elif what == "one too many":
            rewards["other"] = 1.0
        elif what == "foreign picture":
            rewards["other"] = rewards.pop(ids[0])
        elif what == "foreign request":
            token = "0123456789abcdef"
        if isinstance(what, int):
            self.answer(what, {"error": "on purpose"})
        else:
            self.answer(200, "<html>" if what == "garbage" else {"id": token, "rewards": rewards})

    def answer(self, status, content):
        body = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def numbered(*numbers):
    """Pictures that `OddServer` gives these rewards."""
    images = torch.zeros(len(numbers), 3, 4, 4)
    images[:, 0, 0, 0] = torch.tensor([n % 256 for n in numbers]) / 255
    images[:, 1, 0, 0] = torch.tensor([n // 256 for n in numbers]) / 255
    return images
