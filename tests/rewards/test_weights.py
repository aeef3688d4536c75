"""Where weights come from, and what is said, how soon, when they do not come or are not what they should be."""

import os
import pickle
import subprocess
import sys
import time
from types import SimpleNamespace

import huggingface_hub
import pytest
import safetensors.torch
import torch
from malicious import Malicious
from torch import nn

from diffusion_gym import hub as model_hub
from diffusion_gym.rewards import make_reward
from diffusion_gym.rewards.sources import Wanted, find_files
from diffusion_gym.rewards.weights import load_checkpoint

WANTED = Wanted(reward="judge", what="the judge's model", repo="owner/judge", layouts=(("a.pt",), ("b.json", "b.bin")))
ADVICE = "hf download owner/judge a.pt.*--reward-sources judge=PATH"
REWARDS = {
    "image_reward": "THUDM/ImageReward ImageReward.pt",
    "aesthetic": "trl-lib/ddpo-aesthetic-predictor aesthetic-model.pth",
    "clip_score": "openai/clip-vit-large-patch14 config.json model.safetensors tokenizer.json",
    "pick_score": "yuvalkirstain/PickScore_v1 config.json model.safetensors",
    "hps_v2": "xswu/HPSv2 HPS_v2.1_compressed.pt",
}


def write(directory, *names):
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        (directory / name).write_text(name)
    return directory


def test_a_directory_gives_its_first_complete_layout(tmp_path):
    both = write(tmp_path / "both", "a.pt", "b.json", "b.bin")
    assert find_files(str(both), WANTED) == (both / "a.pt",)
    second = write(tmp_path / "second", "b.bin", "b.json", "c")
    assert find_files(second, WANTED) == (second / "b.json", second / "b.bin")
    part = write(tmp_path / "part", "b.json")
    with pytest.raises(
        FileNotFoundError, match=rf"(?s)'judge', source: .*part'.*a.pt .in their place also b.json, b.bin.*{ADVICE}"
    ):
        find_files(part, WANTED)


def test_a_file_is_taken_whatever_its_name(tmp_path, monkeypatch):
    file = write(tmp_path, "mine.weights") / "mine.weights"
    assert find_files(str(file), WANTED) == (file,)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_files("~/mine.weights", WANTED) == (file,)
    directories_only = Wanted(reward="judge", what="a model", repo="owner/judge", layouts=WANTED.layouts[1:])
    with pytest.raises(FileNotFoundError, match=r"mine.weights' is one file, not a directory"):
        find_files(file, directories_only)


@pytest.mark.parametrize("source", ["/nowhere/a.pt", "./nowhere", "nowhere/a.pt", "a/b/c", "", "owner/na me"])
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(source, monkeypatch):
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(FileNotFoundError, match=rf"{source!r} does not exist.*the judge's model: a.pt.*{ADVICE}"):
        find_files(source, WANTED)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that has owner/judge in revisions main and v2, and counts what is asked of it."""
    asked = SimpleNamespace(names=["b.bin", "b.json", "extra", "README.md"], infos=[], files=[])

    def model_info(self, repo, revision, timeout):
        asked.infos.append((repo, revision))
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in asked.names])

    def download(repo, name, revision):
        asked.files.append(name)
        return str(write(tmp_path / "hub" / revision, name) / name)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return asked


def test_the_hub_gives_the_files_of_a_layout_and_extras(hub, tmp_path):
    wanted = Wanted(
        reward="judge", what="a model", repo="owner/judge", layouts=WANTED.layouts, extras=("extra", "absent")
    )
    files = find_files("owner/judge@v2", wanted)
    assert files == (tmp_path / "hub/v2/b.json", tmp_path / "hub/v2/b.bin")
    assert hub.infos == [("owner/judge", "v2")]
    assert hub.files == ["b.json", "b.bin", "extra"], "and nothing else is downloaded"
    assert find_files("owner/judge", wanted)[0] == tmp_path / "hub/main/b.json"
    hub.names = ["README.md"]
    with pytest.raises(FileNotFoundError, match=rf"'owner/judge' \(revision 'main'\) does not have.*{ADVICE}"):
        find_files("owner/judge", WANTED)


def test_what_is_cached_is_not_asked_for(hub, tmp_path):
    cached = tmp_path / "cache" / "models--owner--judge"
    write(cached / "refs", "main")
    (cached / "refs/main").write_text("0123")
    snapshot = write(cached / "snapshots/0123", "b.json", "b.bin")
    assert find_files("owner/judge", WANTED) == (snapshot / "b.json", snapshot / "b.bin")
    assert hub.infos == hub.files == []


@pytest.mark.parametrize("name", REWARDS)
def test_without_weights_and_hub_each_reward_says_what_to_do(name):
    """Here the hub is switched off by HF_HUB_OFFLINE."""
    repo = REWARDS[name].split()[0]
    with pytest.raises(FileNotFoundError) as caught:
        make_reward(name)
    message = str(caught.value)
    assert f"reward {name!r}, source: {repo!r} is neither a path here nor to be had from the hub (it is not" in message
    assert "HF_HUB_OFFLINE" in message
    assert f"`hf download {REWARDS[name]}`" in message
    assert message.endswith(f"--reward-sources {name}=PATH")


@pytest.mark.parametrize("error", [OSError("Name or service not known"), RuntimeError("401 Client Error\nmore")])
def test_an_unreachable_hub_is_named(hub, monkeypatch, error):
    def fail(self, repo, revision, timeout):
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    says = rf"'owner/judge' is neither a path here nor to be had .*{type(error).__name__}: {str(error)[:9]}.*{ADVICE}"
    with pytest.raises(FileNotFoundError, match=says):
        find_files("owner/judge", WANTED)


def test_a_silent_hub_is_not_waited_for(hub, monkeypatch):
    assert model_hub.PATIENCE < 4
    monkeypatch.setattr(model_hub, "PATIENCE", 0.2)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: time.sleep(5))
    start = time.perf_counter()
    with pytest.raises(FileNotFoundError, match=rf"owner/judge.*did not answer within 0.2 s.*{ADVICE}"):
        find_files("owner/judge", WANTED)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("kind", [ConnectionError, type("ConnectionError", (Exception,), {})], ids=["os", "client"])
def test_a_download_that_breaks_off_is_named(hub, monkeypatch, kind):
    def fail(repo, name, revision):
        raise kind("reset")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(FileNotFoundError, match=rf"could not be downloaded .*ConnectionError: reset.*{ADVICE}"):
        find_files("owner/judge", WANTED)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("protocol", ["torch", "pickle"])
def test_a_pickle_that_runs_code_is_not_read(tmp_path, nested, protocol):
    trace, file = tmp_path / "executed", tmp_path / "a.pt"
    data = {"weight": Malicious(trace)}
    data = {"state_dict": data} if nested else data
    if protocol == "torch":
        torch.save(data, file)
    else:
        file.write_bytes(pickle.dumps(data, protocol=2))
    with pytest.raises(ValueError, match=rf"'judge', source: .*a.pt is not the judge's model.*could run.*{ADVICE}"):
        load_checkpoint(file, WANTED)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Malicious(trace)))
    assert trace.exists(), "the pickle must be one that runs code"


@pytest.mark.parametrize("name", REWARDS)
def test_no_reward_runs_a_pickle(tmp_path, name):
    trace = tmp_path / "executed"
    for file in ("ImageReward.pt", "aesthetic-model.pth", "pytorch_model.bin", "HPS_v2.1_compressed.pt"):
        torch.save({"weight": Malicious(trace)}, tmp_path / file)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    write(tmp_path, "tokenizer.json", "vocab.txt")
    options = {"image_reward": "tokenizer", "aesthetic": "clip"}
    places = {name: str(tmp_path)} | ({f"{name}.{options[name]}": str(tmp_path)} if name in options else {})
    with pytest.raises(ValueError, match=rf"reward {name!r}, source: {tmp_path}.*could run code"):
        make_reward(name, sources=places)
    assert not trace.exists()


def damaged(tmp_path, kind):
    path = tmp_path / ("a.safetensors" if "safetensors" in kind else "a.pt")
    tensors = {"weight": torch.randn(1000)}
    if "safetensors" in kind:
        safetensors.torch.save_file(tensors, path)
    else:
        torch.save(tensors, path)
    content = path.read_bytes()
    if "cut" in kind:
        path.write_bytes(content[: len(content) // 2])
    elif "empty" in kind:
        path.write_bytes(b"")
    elif "pointer" in kind:
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n")
    return path


@pytest.mark.parametrize(
    "kind", [f"{how} {what}" for how in ("cut", "empty", "pointer") for what in ("pickle", "safetensors")]
)
def test_damaged_files_are_named(tmp_path, kind):
    path = damaged(tmp_path, kind)
    with pytest.raises(ValueError, match=rf"{path} is not the judge's model: it is damaged.*{ADVICE}"):
        load_checkpoint(path, WANTED)


@pytest.mark.parametrize("data", [[torch.zeros(2)], {"weight": 3}, torch.zeros(2), {"state_dict": {"epoch": 3}}])
def test_other_contents_are_refused(tmp_path, data):
    torch.save(data, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="something else than tensors with names"):
        load_checkpoint(tmp_path / "a.pt", WANTED)


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy", "nested"])
def test_tensors_are_read_from_every_format(tmp_path, form):
    tensors = {"a": torch.randn(3), "b": torch.randn(2, 2).bfloat16(), "x.position_ids": torch.arange(3)}
    path = tmp_path / ("a.safetensors" if form == "safetensors" else "a.pt")
    if form == "safetensors":
        safetensors.torch.save_file(tensors, path)
    elif form == "nested":
        torch.save({"state_dict": tensors, "epoch": 3}, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=form == "zip")
    found = load_checkpoint(path, WANTED).tensors
    assert found.keys() == {"a", "b"}
    for name, tensor in found.items():
        assert tensor.dtype == tensors[name].dtype
        assert torch.equal(tensor, tensors[name])


class Counting(nn.Module):
    """A network with a buffer that its state does not have."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("position_ids", torch.arange(5)[None], persistent=False)


def test_a_network_gets_the_tensors_themselves(tmp_path):
    torch.save({"linear.weight": torch.randn(2, 3), "linear.bias": torch.randn(2)}, tmp_path / "a.pt")
    checkpoint = load_checkpoint(tmp_path / "a.pt", WANTED)
    network = checkpoint.build(Counting)
    assert network.linear.weight.data_ptr() == checkpoint.tensors["linear.weight"].data_ptr()
    assert network.position_ids.tolist() == [[0, 1, 2, 3, 4]]
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["linear.bias"], "without linear.weight"),
        ([], "without linear.bias, linear.weight"),
        (["linear.weight", "linear.bias", *"abcde"], "with a, b, c and 2 more as well"),
    ],
)
def test_a_network_gets_all_its_tensors_and_no_others(tmp_path, names, says):
    shapes = {"linear.weight": (2, 3)}
    torch.save({name: torch.zeros(shapes.get(name, (2,))) for name in names}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=rf"of another architecture, {says}\. Get it"):
        load_checkpoint(tmp_path / "a.pt", WANTED).build(Counting)


def test_transformers_is_not_imported_to_say_that_weights_are_missing():
    """Importing it takes seconds, which an error would come later."""
    code = (
        "import sys\nfrom diffusion_gym.rewards import make_reward\n"
        f"for name in {sorted(REWARDS)}:\n"
        "    try:\n        make_reward(name)\n    except FileNotFoundError:\n        print(name)\n"
        "assert 'transformers' not in sys.modules and 'diffusers' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == sorted(REWARDS)
