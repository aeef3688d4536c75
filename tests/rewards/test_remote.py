"""Rewards over HTTP: the right reward for each picture, whatever happens to server and connection."""

import random
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from servers import OddHandler, OddServer, eight_bit, numbered, running

from agents.config import DDPOConfig
from diffusion_gym.rewards import RemoteReward, RewardError, make_reward, remote, serve

EAGER = {"backoff": 0.01, "timeout": 10.0}


def judge(images, prompts, metadata):
    """Depends on every value of the picture, on the prompt and on the metadata."""
    weights = torch.linspace(-1, 1, images[0].numel()).view(images[0].shape)
    bonus = [len(prompt) + known.get("count", 0) for prompt, known in zip(prompts, metadata, strict=True)]
    return (images * weights).sum((1, 2, 3)) + torch.tensor(bonus)


def ask(reward, *numbers):
    return reward(numbered(*numbers), [str(n) for n in numbers], [{}] * len(numbers)).tolist()


def test_a_served_reward_is_the_local_one_for_eight_bit_pictures():
    images, prompts = eight_bit(11), ["a cat" * i for i in range(11)]
    images[0].view(-1)[:192] = torch.arange(192) / 255
    images[1].view(-1)[:192] = torch.arange(64, 256) / 255
    metadata = [{"count": i, "more": ["ü", None, {"x": 0.1}]} for i in range(11)]
    with running(serve.RewardServer(judge, "judge", port=0)) as url:
        reward = RemoteReward(url, chunk=3, connections=2)
        assert reward.served == "judge"
        scores = reward(images, prompts, metadata)
        assert scores.dtype == torch.float32
        assert torch.equal(scores, judge(images, prompts, metadata))
        for shift in (-0.4, 0.4):  # and others are rounded to these
            assert torch.equal(reward(images + shift / 255, prompts, metadata), scores)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("slow", "TimeoutError"),
        ("cut off", "no JSON: b'{'"),
        ("no answer", "RemoteDisconnected"),
        ("garbage", "no JSON"),
        ("nan", "no finite number: nan"),
        ("huge", "no finite number: 1000"),
        ("text", "no finite number: '1.0'"),
        ("yes", "no finite number: True"),
        ("one too few", "2 rewards for 3 pictures"),
        ("one too many", "4 rewards for 3 pictures"),
        ("foreign picture", "or for others than were sent"),
        ("foreign request", "another request: '0123456789abcdef'"),
        (500, "status 500: on purpose"),
        (503, "status 503: on purpose"),
    ],
)
def test_a_failed_attempt_is_repeated_and_a_failed_last_one_named(what, says):
    timeout = 0.25 if what == "slow" else 10.0
    server = OddServer(what)
    with running(server) as url:
        reward = RemoteReward(url, backoff=0.01, timeout=timeout)
        assert ask(reward, 7, 300, 65535) == [7, 300, 65535]
        assert server.requests == 2
        server.script = [what] * 2
        with pytest.raises(RewardError, match=f"{url} gave no rewards in 2 attempts; the last one: .*{says}"):
            ask(RemoteReward(url, backoff=0.01, timeout=timeout, retries=1), 1, 2, 3)
        assert server.requests == 4


def test_a_refusal_is_not_repeated():
    server = OddServer(400)
    with running(server) as url:
        with pytest.raises(RewardError, match=rf"{url} refused the pictures \(400\): on purpose"):
            ask(RemoteReward(url), 1)
        assert server.requests == 1


def test_pauses_between_attempts_double(monkeypatch):
    pauses = []

    class Impatient(threading.Event):
        def wait(self, timeout=None):
            pauses.append(timeout)
            return False

    with running(OddServer(*[500] * 4)) as url:
        reward = RemoteReward(url, backoff=8)
        monkeypatch.setattr(remote, "Event", Impatient)
        assert ask(reward, 1) == [1]
    limits = [(4, 12), (8, 24), (15, 45), (15, 45)]  # half a minute at most, give or take half
    assert all(low <= pause <= high for pause, (low, high) in zip(pauses, limits, strict=True))


def test_a_thousand_requests_in_any_order_give_each_picture_its_own_reward():
    server = OddServer(*["any moment"] * 1000)
    numbers = random.Random(0).sample(range(65536), 1000)
    with running(server) as url, ThreadPoolExecutor(16) as threads:
        reward = RemoteReward(url, chunk=2, connections=8, **EAGER)
        batches = [numbers[i : i + 8] for i in range(0, 1000, 8)] * 2
        found = list(threads.map(lambda batch: ask(reward, *batch), batches))
    assert found == batches
    assert server.requests == 1000


def test_the_global_generators_are_left_alone():
    def state():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002

    before = state()
    with running(OddServer(500, "nan")) as url:
        assert ask(RemoteReward(url, chunk=1, **EAGER), 1, 2) == [1, 2]
    assert state() == before


def test_calls_of_the_reward_come_one_after_the_other():
    busy, threads = threading.Lock(), set()

    def alone(images, prompts, metadata):
        assert busy.acquire(blocking=False)
        time.sleep(0.01)
        busy.release()
        threads.add(threading.get_ident())
        return [1.0] * len(prompts)

    with running(serve.RewardServer(alone, "alone", port=0)) as url:
        reward = RemoteReward(url, chunk=1, connections=8, retries=0)
        assert ask(reward, *range(16)) == [1.0] * 16
    assert len(threads) == 1


def test_pictures_nobody_waits_for_are_not_scored():
    calls, go_on = [], threading.Event()

    def slow(images, prompts, metadata):
        calls.append(list(prompts))
        assert go_on.wait(20)
        return [1.0] * len(prompts)

    with running(serve.RewardServer(slow, "slow", port=0)) as url:
        with pytest.raises(RewardError, match="TimeoutError"):
            ask(RemoteReward(url, chunk=1, connections=4, retries=0, timeout=0.2), 1, 2, 3, 4)
        time.sleep(0.1)  # for the client's threads to hang up
        go_on.set()
        assert ask(RemoteReward(url), 5) == [1.0]
    assert len(calls) == 2
    assert calls[-1] == ["5"]


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        ([1.0, float("nan")], "bad returned nan for the prompt '2'"),
        ([1.0], r"bad must return one number a picture, 2, got \(1,\)"),
        (None, "bad must return one number"),
        (KeyError("oops"), "KeyError: 'oops'"),
    ],
)
def test_a_reward_that_fails_at_the_server_is_named(returned, says, capfd):
    def bad(images, prompts, metadata):
        if isinstance(returned, Exception):
            raise returned
        return returned

    with (
        running(serve.RewardServer(bad, "bad", port=0)) as url,
        pytest.raises(RewardError, match=f"1 attempts; the last one: status 500: .*{says}"),
    ):
        ask(RemoteReward(url, retries=0), 1, 2)
    assert "Error" in capfd.readouterr().err


def test_requests_that_are_none_are_refused():
    header = {"id": "a", "height": 1, "width": 1, "pictures": [{"id": "b", "prompt": "c", "metadata": {}}]}
    assert serve.parse_request(serve.pack_header(header) + bytes(3)).pixels.shape == (1, 1, 1, 3)
    for change in (
        {"height": 2},
        {"height": 0},
        {"width": float(10**30)},
        {"height": "x"},
        {"pictures": []},
        {"pictures": header["pictures"] * 2, "height": 1},
        {"pictures": [{}]},
        {"pictures": 3},
    ):
        with pytest.raises(ValueError, match="JSON"):
            serve.parse_request(serve.pack_header({**header, **change}) + bytes(3))
    twice = {**header, "pictures": header["pictures"] * 2}
    with pytest.raises(ValueError, match="an id of its own"):
        serve.parse_request(serve.pack_header(twice) + bytes(6))
    for body in (b"", b"abc", struct.pack(">I", 2**32 - 1), struct.pack(">I", 2) + b"[]", struct.pack(">I", 1) + b"{"):
        with pytest.raises(ValueError, match=r"body|JSON"):
            serve.parse_request(body)
    with running(serve.RewardServer(judge, "judge", port=0)) as url:
        reward = RemoteReward(url)
        reward.url += "/elsewhere"
        with pytest.raises(RewardError, match=r"refused the pictures \(404\): pictures are sent by POST /score"):
            ask(reward, 1)


def test_a_body_that_is_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(serve, "MAX_BODY", 2**20)
    images = torch.zeros(5, 3, 1024, 1024)  # far more than fits into the buffers of a connection
    with running(serve.RewardServer(judge, "judge", port=0)) as url:
        with pytest.raises(RewardError, match=r"\(413\): 15\d+ bytes are more than the 1048576 accepted"):
            RemoteReward(url, chunk=5)(images, ["a"] * 5, [{}] * 5)
        assert RemoteReward(url)(images[:1, :, :8, :8], ["a"], [{}]) == 1


def test_no_server_is_noticed_at_once_and_the_command_named(monkeypatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(RewardError, match=rf"(?s)no reward server answers at {url} \(Conn.*`diffusion-gym serve"):
            make_reward(url)
        silent.listen()
        monkeypatch.setattr(remote, "_HEALTH_SECONDS", 0.2)
        start = time.monotonic()
        with pytest.raises(RewardError, match=f"{url} .*Timeout"):
            make_reward(url)
        assert time.monotonic() - start < 2
    with running(OddServer()) as url, monkeypatch.context() as patch:
        patch.setattr(OddHandler, "do_GET", lambda self: self.answer(200, "<html>"))
        with pytest.raises(RewardError, match=rf"{url} \(an answer that is no JSON"):
            make_reward(url)


@pytest.mark.parametrize(
    "url", ["ftp://host:1", "http://", "http://host:port", "http://host:1?a=2", "http://me@host:1", "host:8000"]
)
def test_bad_urls_are_named(url):
    with pytest.raises(ValueError, match="url must be http://HOST:PORT"):
        RemoteReward(url)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"timeout": 0}, ValueError, "timeout must be greater than 0"),
        ({"timeout": float("nan")}, ValueError, "timeout"),
        ({"retries": -1}, ValueError, "retries must be greater than -1"),
        ({"retries": 1.5}, TypeError, "retries must be an int"),
        ({"chunk": 0}, ValueError, "chunk"),
        ({"connections": True}, TypeError, "connections"),
    ],
)
def test_bad_settings_are_named(options, error, says):
    with pytest.raises(error, match=says):
        RemoteReward("http://127.0.0.1:1", **options)


def test_urls_stand_in_sums_with_options_of_their_own():
    with running(OddServer()) as one, running(OddServer()) as other:
        text = f"{one}=1,{other}=0.5,jpeg_incompressibility=2"
        spec = DDPOConfig(reward=text).reward_spec()
        reward = make_reward(spec, sources={f"{one}.timeout": "3.5", f"{one}.chunk": "2"})
        assert reward.terms[0].reward.timeout == 3.5
        assert reward.terms[0].reward.chunk == 2
        assert reward.terms[1].reward.timeout == 60
        scores = reward(numbered(4, 300), ["a", "b"], [{}, {}])
        assert list(scores.terms) == [one, other, "jpeg_incompressibility"]
        assert torch.equal(scores.total, 1.5 * torch.tensor([4.0, 300]) + 2 * scores.terms["jpeg_incompressibility"])
        assert make_reward(RemoteReward(one)).terms[0].name == one
        for option, says in (("speed", "no option 'speed'.*timeout"), ("timeout", "must be a number, got 'x'")):
            with pytest.raises(ValueError, match=says):
                make_reward(one, sources={f"{one}.{option}": "x"})
        with pytest.raises(ValueError, match="belongs to no reward asked for"):
            make_reward(one, sources={f"{other}.timeout": "1"})


def test_metadata_that_is_no_json_is_named():
    with running(OddServer()) as url, pytest.raises(TypeError, match="metadata must be plain JSON"):
        RemoteReward(url)(numbered(1), ["a"], [{"x": torch.zeros(1)}])
