"""A reward that another process computes, on this machine or elsewhere: the client of `serve.py`.

    reward = make_reward({"http://127.0.0.1:8000": 1.0, "emoji_quality": 0.2})
    reward = make_reward(RemoteReward("http://gpu-box:8000", timeout=300, retries=8))

Pictures travel as 8-bit RGB: the server judges what a picture file of them would hold. `serve.py` describes the format.
"""

import http.client
import json
import math
import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from threading import Event
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor

from diffusion_gym.rewards.base import RewardError, check_pictures
from diffusion_gym.rewards.serve import HEALTH, SCORE, pack_header

SCHEMES = ("http://", "https://")
MAX_REPLY = 16 * 2**20
"""Bytes of an answer that are read."""
_OPTIONS = {"timeout": float, "retries": int, "backoff": float, "chunk": int, "connections": int}
_HEALTH_SECONDS = 4.5
_LONGEST_PAUSE = 30.0
_LARGEST = torch.finfo(torch.float32).max


class _BadReplyError(Exception):
    """The server failed, or what it answered is no answer to the request: worth another attempt."""


class RemoteReward:
    """The reward behind a URL. Any callable of the package may stand behind it; see `diffusion-gym serve`.

    A batch is split into chunks, sent over several connections at the same time. A chunk that fails (no server, no
    answer in time, an answer that is damaged, incomplete or not finite) is sent again after a pause that doubles each
    time; one that the server refuses is not.

    Args:
        url: http://HOST:PORT, or https with a proxy's path before it.
        timeout: seconds without a sign of the server after which an attempt has failed. The pictures of other clients
            that come first count too.
        retries: further attempts after a failed one.
        backoff: seconds before the first of them, give or take half. 0.5 and 5 retries wait 8 to 23 seconds in all.
        chunk: pictures a request.
        connections: requests at the same time.

    Raises:
        TypeError, ValueError: an argument is wrong.
        RewardError: no reward server answers within 5 seconds.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 60.0,
        retries: int = 5,
        backoff: float = 0.5,
        chunk: int = 16,
        connections: int = 4,
    ) -> None:
        self.url = self.__name__ = _check_url(url)
        self.timeout = float(_check_number("timeout", timeout, float, above=0))
        self.retries = int(_check_number("retries", retries, int, above=-1))
        self.backoff = float(_check_number("backoff", backoff, float, above=0))
        self.chunk = int(_check_number("chunk", chunk, int, above=0))
        self.connections = int(_check_number("connections", connections, int, above=0))
        self.served = self._ask_name()
        """The name of the reward at the server."""

    @classmethod
    def from_options(cls, url: str, options: Mapping[str, str]) -> "RemoteReward":
        """Make one with options as they are written on the command line: {"timeout": "300"}.

        Raises:
            ValueError: there is no such option, or it is no number.
        """
        numbers: dict[str, Any] = {}
        for name, text in options.items():
            if name not in _OPTIONS:
                raise ValueError(f"reward {url!r} has no option {name!r}; those it has: {sorted(_OPTIONS)}")
            try:
                numbers[name] = _OPTIONS[name](text)
            except ValueError as error:
                raise ValueError(f"reward {url!r}: {name} must be a number, got {text!r}") from error
        return cls(url, **numbers)

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """Score pictures, (B,) float32.

        Raises:
            TypeError, ValueError: an argument is not a batch of pictures, prompts and metadata, or metadata is not
                plain JSON.
            RewardError: the server refuses the request, or failed to answer in every attempt.
        """
        check_pictures(images, prompts, metadata)
        parts = [slice(start, start + self.chunk) for start in range(0, len(images), self.chunk)]
        stop = Event()
        threads = ThreadPoolExecutor(min(self.connections, len(parts)))
        try:
            futures = [threads.submit(self._score, images[p], prompts[p], metadata[p], stop) for p in parts]
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
            return torch.tensor([reward for future in futures for reward in future.result()], dtype=torch.float32)
        finally:
            stop.set()  # after a failure or Ctrl-C the other chunks need no further attempts
            threads.shutdown(wait=False, cancel_futures=True)

    def __repr__(self) -> str:
        return f"RemoteReward({self.url!r}, serving {self.served!r})"

    def _score(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]], stop: Event
    ) -> list[float]:
        """Rewards of a chunk, in as many attempts as it takes."""
        header = {
            "height": images.shape[2],
            "width": images.shape[3],
            "pictures": [
                {"prompt": prompt, "metadata": dict(known)} for prompt, known in zip(prompts, metadata, strict=True)
            ],
        }
        pixels = [_to_rgb(image) for image in images]
        attempt = 0
        while True:
            attempt += 1
            try:
                return self._request(header, pixels)
            except (OSError, http.client.HTTPException, _BadReplyError) as error:
                pause = min(self.backoff * 2.0 ** (attempt - 1), _LONGEST_PAUSE)
                jitter = secrets.SystemRandom().uniform(0.5, 1.5)  # the global generators are the run's
                if attempt > self.retries or stop.wait(pause * jitter):
                    raise RewardError(
                        f"{self.url} gave no rewards in {attempt} attempts; the last one: {_describe(error)}"
                    ) from error

    def _request(self, header: Mapping[str, Any], pixels: Sequence[bytes]) -> list[float]:
        """Send a chunk once."""
        token = secrets.token_hex(8)
        ids = [f"{token}-{i}" for i in range(len(pixels))]
        pictures = [{"id": id_, **picture} for id_, picture in zip(ids, header["pictures"], strict=True)]
        try:
            packed = pack_header({**header, "id": token, "pictures": pictures})
        except (TypeError, ValueError) as error:
            raise TypeError(f"metadata must be plain JSON to be sent to {self.url}: {error}") from error
        status, answer = self._exchange("POST", SCORE, self.timeout, [packed, *pixels])
        if 400 <= status < 500:
            raise RewardError(f"{self.url} refused the pictures ({status}): {_error_in(answer)}")
        if status != 200:
            raise _BadReplyError(f"status {status}: {_error_in(answer)}")
        return _read_rewards(answer, token, ids)

    def _ask_name(self) -> str:
        """The name of the reward that the server has."""
        thread = ThreadPoolExecutor(1)  # looking up the host's name knows no timeout
        try:
            future = thread.submit(self._exchange, "GET", HEALTH, _HEALTH_SECONDS)
            status, answer = future.result(timeout=_HEALTH_SECONDS)
            if status != 200:
                raise _BadReplyError(f"status {status}: {_error_in(answer)}")
            return str(_read_json(answer)["reward"])
        except (OSError, http.client.HTTPException, _BadReplyError, KeyError) as error:
            raise RewardError(
                f"no reward server answers at {self.url} ({_describe(error)}); start one there with "
                "`diffusion-gym serve REWARD --host HOST --port PORT`"
            ) from error
        finally:
            thread.shutdown(wait=False)

    def _exchange(self, method: str, path: str, timeout: float, body: Sequence[bytes] = ()) -> tuple[int, bytes]:
        """Status and body of the answer; a connection of its own, so that a server may come and go."""
        place = urlsplit(self.url)
        kind = http.client.HTTPSConnection if place.scheme == "https" else http.client.HTTPConnection
        connection = kind(place.hostname or "", place.port, timeout=timeout)
        try:
            connection.request(method, place.path + path, body, {"Content-Length": str(sum(map(len, body)))})
            response = connection.getresponse()
            return response.status, response.read(MAX_REPLY)
        finally:
            connection.close()


def _to_rgb(image_3HW: Tensor) -> bytes:
    """A picture as 8-bit RGB, row by row; one at a time, because the large intermediates of a batch cost more."""
    levels = image_3HW.float().clamp(0, 1).mul_(255).round_().to(torch.uint8)
    return levels.permute(1, 2, 0).contiguous().cpu().numpy().tobytes()


def _read_rewards(answer: bytes, token: str, ids: Sequence[str]) -> list[float]:
    """The rewards in an answer, in the order of `ids`."""
    content = _read_json(answer)
    rewards = content.get("rewards")
    if content.get("id") != token:
        raise _BadReplyError(f"an answer to another request: {content.get('id')!r}")
    if not isinstance(rewards, dict) or rewards.keys() != set(ids):
        count = len(rewards) if isinstance(rewards, dict) else "no"
        raise _BadReplyError(f"{count} rewards for {len(ids)} pictures, or for others than were sent")
    for reward in rewards.values():
        if isinstance(reward, bool) or not isinstance(reward, int | float) or not abs(reward) <= _LARGEST:
            raise _BadReplyError(f"a reward that is no finite number: {reward!r:.60}")
    return [float(rewards[id_]) for id_ in ids]


def _read_json(answer: bytes) -> dict[str, Any]:
    try:
        content = json.loads(answer)
    except ValueError as error:
        raise _BadReplyError(f"an answer that is no JSON: {answer[:60]!r}") from error
    if not isinstance(content, dict):
        raise _BadReplyError(f"an answer that is no JSON object: {answer[:60]!r}")
    return content


def _error_in(answer: bytes) -> str:
    """What the server says went wrong."""
    try:
        return str(_read_json(answer)["error"])
    except (_BadReplyError, KeyError):
        return repr(answer[:200])


def _describe(error: Exception) -> str:
    return str(error) if isinstance(error, _BadReplyError) else f"{type(error).__name__}: {error}".rstrip(": ")


def _check_url(url: object) -> str:
    """The URL without a slash at its end."""
    if not isinstance(url, str):
        raise TypeError(f"url must be a string, got {url!r}")
    try:
        place = urlsplit(url)
        _ = place.port
    except ValueError as error:
        raise ValueError(f"url must be http://HOST:PORT, got {url!r} ({error})") from error
    if not url.startswith(SCHEMES) or not place.hostname or place.query or place.fragment or place.username:
        raise ValueError(f"url must be http://HOST:PORT, got {url!r}")
    return url.rstrip("/")


def _check_number(name: str, value: object, kind: type[int] | type[float], *, above: int) -> Any:
    if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
        raise TypeError(f"{name} must be {'an int' if kind is int else 'a number'}, got {value!r}")
    if not above < value < math.inf:
        raise ValueError(f"{name} must be greater than {above}, got {value}")
    return value
