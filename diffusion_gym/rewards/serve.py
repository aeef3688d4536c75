"""Serve one reward over HTTP, to trainings in other processes and on other machines.

    diffusion-gym serve pick_score --port 8000            # any reward that has a name, or module:function
    python serve.py my_module:score --port 8000           # this file alone, by a Python without this package
    diffusion-gym train dpok --reward http://127.0.0.1:8000 ...

The second form is for a reward whose dependencies fit no other package's: copy this file to where that Python is. It
needs numpy and Python 3.9 or later. `my_module:score` is called as `score(images, prompts, metadata)` and returns one
finite number a picture; images are (B, 3, H, W) float32 in [0, 1], a torch tensor if torch can be imported, else a
numpy array. Calls come one after the other, from one thread.

There is no authentication: whoever reaches the port can have pictures scored. Only this machine does unless `--host`
says otherwise; then see to it that the network is one you trust.

    GET  /health   {"reward": NAME}
    POST /score    N (4 bytes, big endian), N bytes of JSON, then the pictures as 8-bit RGB, (B, H, W, 3) row by row
                   {"id": ID, "height": H, "width": W, "pictures": [{"id": ID, "prompt": TEXT, "metadata": {}}, ...]}
    200            {"id": ID, "rewards": {ID OF THE PICTURE: NUMBER, ...}}
    4xx, 5xx       {"error": TEXT}: the request is wrong and always will be; the reward failed
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pkgutil
import socket
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

HEALTH, SCORE = "/health", "/score"
DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8000
MAX_BODY = 256 * 2**20
"""Bytes of a request that are accepted: 85 pictures of 1024 x 1024."""

Score = Callable[[Any, Sequence[str], Sequence[Mapping[str, Any]]], Any]
"""A reward: (images, prompts, metadata) -> (B,) numbers."""
_LENGTH = struct.Struct(">I")


@dataclass(frozen=True)
class Request:
    """Pictures to score: their ids, prompts, metadata, and (B, H, W, 3) uint8."""

    id: str
    ids: list[str]
    prompts: list[str]
    metadata: list[dict[str, Any]]
    pixels: np.ndarray[Any, np.dtype[np.uint8]]


def pack_header(header: Mapping[str, Any]) -> bytes:
    """What stands before the pictures in a request.

    Raises:
        TypeError, ValueError: it is not plain JSON.
    """
    text = json.dumps(header, allow_nan=False).encode()
    return _LENGTH.pack(len(text)) + text


def parse_request(body: bytes) -> Request:
    """Read the body of a request.

    Raises:
        ValueError: it is none; says why.
    """
    if len(body) < _LENGTH.size:
        raise ValueError(f"the body must begin with {_LENGTH.size} bytes, has {len(body)}")
    start = _LENGTH.size + _LENGTH.unpack_from(body)[0]
    try:
        header = json.loads(body[_LENGTH.size : start])
        shape = (len(header["pictures"]), int(header["height"]), int(header["width"]), 3)
        ids = [str(picture["id"]) for picture in header["pictures"]]
        prompts = [str(picture["prompt"]) for picture in header["pictures"]]
        metadata = [dict(picture["metadata"]) for picture in header["pictures"]]
        request_id = str(header["id"])
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise ValueError(f"the JSON is not of the form that is described in serve.py ({error!r})") from error
    if min(shape) < 1 or len(body) - start != np.prod(shape, dtype=object):
        raise ValueError(f"pictures of shape {shape} must follow the JSON, got {len(body) - start} bytes")
    if len(set(ids)) < len(ids):
        raise ValueError("each picture must have an id of its own")
    pixels = np.frombuffer(body, np.uint8, offset=start).reshape(shape)
    return Request(id=request_id, ids=ids, prompts=prompts, metadata=metadata, pixels=pixels)


class _Gone(ConnectionError):
    """The client no longer waits for an answer."""


class RewardServer(ThreadingHTTPServer):
    """An HTTP server around a reward; listens from its making on, answers within `serve_forever`.

    Args:
        score: the reward.
        name: its name, for clients and messages.
        host: the address to listen on.
        port: the port; 0 takes any that is free.

    Raises:
        OSError: the address is not to be had.
    """

    request_queue_size = 128

    def __init__(self, score: Score, name: str, host: str = DEFAULT_HOST, port: int = DEFAULT_PORT) -> None:
        self.name = name
        self._score = score
        # One thread for all calls: in order of arrival, and no other new thread for libraries that keep state in each.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="reward")
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise OSError(f"cannot listen on --host {host} --port {port}: {error}; choose another") from error

    @property
    def url(self) -> str:
        """Where the reward is to be had."""
        return f"http://{self.server_address[0]!s}:{self.server_address[1]}"

    def rewards(self, request: Request, check_waiting: Callable[[], None]) -> list[float]:
        """Score pictures when it is their turn, unless `check_waiting` then raises.

        Raises:
            Exception: what the reward raised; ValueError if it did not return one finite number a picture.
        """

        def call() -> list[float]:
            check_waiting()
            return self._call(request)

        return self._worker.submit(call).result()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report what went wrong with a connection, unless the client just went away."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def _call(self, request: Request) -> list[float]:
        images = np.divide(request.pixels.transpose(0, 3, 1, 2), np.float32(255), dtype=np.float32, order="C")
        try:
            import torch
        except ImportError:
            returned = self._score(images, request.prompts, request.metadata)
        else:
            with torch.no_grad():
                returned = self._score(torch.from_numpy(images), request.prompts, request.metadata)
            if isinstance(returned, torch.Tensor):
                returned = returned.detach().double().cpu().numpy()
        rewards = np.asarray(returned, dtype=np.float64)
        if rewards.shape != (len(images),):
            raise ValueError(f"{self.name} must return one number a picture, {len(images)}, got {rewards.shape}")
        if not np.isfinite(rewards).all():
            i = int(np.argmin(np.isfinite(rewards)))
            raise ValueError(f"{self.name} returned {rewards[i]} for the prompt {request.prompts[i]!r}")
        return rewards.tolist()


class _Handler(BaseHTTPRequestHandler):
    server: RewardServer
    timeout = 60  # seconds without a byte from a client
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Answer whether a reward is here."""
        if self.path == HEALTH:
            self._reply(200, {"reward": self.server.name})
        else:
            self._reply(404, {"error": f"nothing at {self.path}; there is GET {HEALTH} and POST {SCORE}"})

    def do_POST(self) -> None:
        """Score pictures."""
        text = self.headers.get("Content-Length", "")
        length = int(text) if text.isdecimal() else 0
        if self.path != SCORE or not length:
            self._reply(404, {"error": f"pictures are sent by POST {SCORE} with a Content-Length"})
            self._discard(length)
        elif length > MAX_BODY:
            self._reply(413, {"error": f"{length} bytes are more than the {MAX_BODY} accepted: send fewer pictures"})
            self._discard(length)
        elif len(body := self.rfile.read(length)) == length:  # else the client went away
            self._reply(*self._answer(body))

    def _answer(self, body: bytes) -> tuple[int, dict[str, Any]]:
        """Status and content of the answer to a request."""
        try:
            request = parse_request(body)
        except ValueError as error:
            return 400, {"error": str(error)}
        try:
            rewards = self.server.rewards(request, self._check_waiting)
        except _Gone:
            raise
        except Exception as error:
            self.log_error("%s: %s", type(error).__name__, error)
            return 500, {"error": f"{type(error).__name__}: {error}"}
        return 200, {"id": request.id, "rewards": {request.ids[i]: reward for i, reward in enumerate(rewards)}}

    def log_request(self, *args: Any) -> None:
        """Say nothing of what went well."""

    def _check_waiting(self) -> None:
        """Raise _Gone if the client has gone: it asks again, and pictures nobody waits for would hold up the others."""
        self.connection.settimeout(0)
        try:
            gone = not self.connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            gone = False
        except OSError:
            gone = True
        self.connection.settimeout(self.timeout)
        if gone:
            raise _Gone("the client has gone")

    def _discard(self, length: int) -> None:
        """Read what is not wanted: a client reads no answer before everything is sent."""
        while length > 0 and (read := len(self.rfile.read(min(length, 2**16)))):
            length -= read

    def _reply(self, status: int, content: Mapping[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def serve(score: Score, name: str, host: str = DEFAULT_HOST, port: int = DEFAULT_PORT) -> None:
    """Serve a reward until Ctrl-C; says on stdout where.

    Raises:
        OSError: the address is not to be had.
    """
    with RewardServer(score, name, host, port) as server, contextlib.suppress(KeyboardInterrupt):
        print(f"serving {name} at {server.url} (Ctrl-C to stop)", flush=True)
        server.serve_forever()


def main() -> None:
    """Serve the function that the command line names."""
    parser = argparse.ArgumentParser(description="Serve a reward over HTTP, without authentication.")
    parser.add_argument("reward", help="module:function, called as function(images, prompts, metadata)")
    parser.add_argument("--host", default=DEFAULT_HOST, help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", default=DEFAULT_PORT, type=int, help="0 for any that is free (default: %(default)s)")
    arguments = parser.parse_args()
    # Modules are looked for where the user stands, not beside this file.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [os.getcwd(), *(place for place in sys.path if os.path.abspath(place) != here)]
    try:
        score = pkgutil.resolve_name(arguments.reward)
    except (ImportError, AttributeError, ValueError) as error:
        parser.error(f"{arguments.reward!r} cannot be found ({error}); name a function as module:function")
    if not callable(score):
        parser.error(f"{arguments.reward!r} must be a function (images, prompts, metadata), got {score!r}")
    try:
        serve(score, arguments.reward, arguments.host, arguments.port)
    except OSError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
