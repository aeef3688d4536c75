"""Models of a hub: which files are downloaded, what a cache alone is enough for, and what is said if neither does."""

import fnmatch
import gc
import itertools
import re
import shlex
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from fake_hub import COMMIT, serve
from safetensors.torch import load_file
from single_files import same_weights

from benchmarks.random_model import save_random_sdxl
from diffusion_gym.pipelines import load_pipeline, read_model_files
from diffusion_gym.pipelines.part_files import find_weights

NEEDED = {
    "model_index.json",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
}
WEIGHTS = {name for name in NEEDED if name.endswith(".safetensors")}


@pytest.fixture
def repository(tmp_path, tiny_model):
    """A repository as they are published: twins of the weights, parts that are not used, single files, pictures."""
    root = shutil.copytree(tiny_model, tmp_path / "repository")
    twins = ("{}.bin", "{}.fp16.bin", "{}.fp16.safetensors", "{}.non_ema.safetensors")
    for part, stem in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        for twin in (*twins, "flax_model.msgpack", "openvino_model.xml"):
            (root / part / twin.format(stem)).write_bytes(b"not needed")
    for name in ("safety_checker/model.safetensors", "safety_checker/config.json", "README.md", "v1-5.safetensors"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"not needed")
    (root / "feature_extractor").mkdir()
    (root / "feature_extractor" / "preprocessor_config.json").write_text("{}")
    return root


@pytest.fixture(autouse=True)
def no_pipeline_is_left():
    """All repositories here have one name, under which a process shares a pipeline."""
    gc.collect()


def load_all(model):
    pipeline = load_pipeline(model, device="cpu")
    return pipeline.load_unet(), pipeline.vae, pipeline.prompts


def test_only_what_is_used_is_downloaded_part_by_part_of_one_commit(tmp_path, repository, tiny_model, monkeypatch):
    with serve(repository, tmp_path / "hub", monkeypatch) as hub:
        pipeline = load_pipeline("owner/name@main", device="cpu")
        assert pipeline.model == "owner/name@main"
        assert pipeline.files.source.commit == COMMIT
        assert set(hub.downloaded) == NEEDED - WEIGHTS
        hub.downloaded.clear()
        unet = pipeline.load_unet()
        assert hub.downloaded == ["unet/diffusion_pytorch_model.safetensors"]
        pipeline.prompts.ids(["a cat"])
        assert hub.downloaded[1:] == ["text_encoder/model.safetensors"]
        pipeline.decode(torch.zeros(1, *pipeline.latent_shape))
        assert set(hub.downloaded) == WEIGHTS
    local = load_pipeline(tiny_model, device="cpu")
    assert same_weights(unet, local.load_unet())
    assert same_weights(pipeline.vae, local.vae)


def test_what_was_downloaded_is_enough_where_no_hub_answers(tmp_path, repository, monkeypatch):
    with serve(repository, tmp_path / "hub", monkeypatch):
        first = load_all("owner/name")
    again = load_all("owner/name")
    assert same_weights(first[0], again[0])
    assert not list((tmp_path / "hub").rglob("*.bin"))


def test_a_saved_model_has_no_parts_that_were_not_downloaded(tmp_path, repository, monkeypatch):
    index = (repository / "model_index.json").read_text()
    checker = '"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]'
    index = re.sub(r'"safety_checker": \[[^]]*\]', checker, index)
    index = re.sub(
        r'"feature_extractor": \[[^]]*\]', '"feature_extractor": ["transformers", "CLIPImageProcessor"]', index
    )
    (repository / "model_index.json").write_text(index)
    for part in ("vae", "unet"):
        weights = repository / part / "diffusion_pytorch_model.safetensors"
        weights.replace(weights.with_suffix(".fp16.safetensors"))
    with serve(repository, tmp_path / "hub", monkeypatch) as hub:
        pipeline = load_pipeline("owner/name", device="cpu")
        pipeline.save(tmp_path / "saved", pipeline.load_unet())
        assert not [name for name in hub.downloaded if "safety" in name or "feature" in name]
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "saved")
    assert pipe.safety_checker is None
    assert same_weights(pipe.vae, pipeline.vae)


def test_pickles_are_downloaded_only_where_there_is_nothing_else(tmp_path, tiny_model, monkeypatch):
    root = shutil.copytree(tiny_model, tmp_path / "repository")
    weights = root / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with serve(root, tmp_path / "hub", monkeypatch) as hub:
        unet = load_pipeline("owner/name", device="cpu").load_unet()
        assert hub.downloaded[-1] == "unet/diffusion_pytorch_model.bin"
    assert same_weights(unet, load_pipeline(tiny_model, device="cpu").load_unet())


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_are_downloaded_with_their_index(tmp_path, tiny_model, variant, monkeypatch):
    root = shutil.copytree(tiny_model, tmp_path / "repository")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tiny_model)
    for part, module in (("unet", pipe.unet), ("text_encoder", pipe.text_encoder)):
        shutil.rmtree(root / part)
        module.save_pretrained(root / part, max_shard_size="30KB", variant=variant)
        assert len(list((root / part).glob("*.safetensors"))) > 1
        (root / part / "pytorch_model.bin").write_bytes(b"not needed")
    with serve(root, tmp_path / "hub", monkeypatch) as hub:
        unet, _, prompts = load_all("owner/name")
        wanted = {
            f"{part}/{p.name}"
            for part in ("unet", "text_encoder")
            for p in (root / part).glob("*")
            if p.suffix != ".bin"
        }
        assert {name for name in hub.downloaded if name.startswith(("unet", "text"))} == wanted
    assert same_weights(unet, pipe.unet)
    theirs, _ = pipe.encode_prompt("two dogs", "cpu", 1, False)
    assert torch.allclose(prompts.embeddings(prompts.ids(["two dogs"])).tokens_BLD, theirs, atol=1e-6)


def test_weights_are_chosen_by_name():
    stem = "diffusion_pytorch_model"
    for names, found, variant in [
        ([f"{stem}.bin", f"{stem}.fp16.safetensors", f"{stem}.safetensors"], (f"{stem}.safetensors",), None),
        ([f"{stem}.bin", f"{stem}.fp16.safetensors"], (f"{stem}.fp16.safetensors",), "fp16"),
        ([f"{stem}.bin", f"{stem}.fp16.bin", f"{stem}.non_ema.safetensors"], (f"{stem}.bin",), None),
        ([f"{stem}.fp16.bin"], (f"{stem}.fp16.bin",), "fp16"),
    ]:
        weights = find_weights("unet", names)
        assert weights is not None
        assert (weights.names, weights.variant) == (found, variant)
    index = f"{stem}.safetensors.index.json"
    shards = [f"{stem}-0000{k}-of-00002.safetensors" for k in (1, 2)]
    assert find_weights("unet", [index, *shards]).names == (index, *shards)
    old = ["model.safetensors.index.fp16.json", "model-00001-of-00001.fp16.safetensors"]
    assert find_weights("text_encoder_2", old).variant == "fp16"
    assert find_weights("unet", [index, shards[0]]) is None
    assert find_weights("unet", shards) is None
    assert find_weights("unet", ["diffusion_flax_model.msgpack", "config.json"]) is None


def test_an_incomplete_cache_names_the_part_and_the_command(tmp_path, repository, monkeypatch):
    with serve(repository, tmp_path / "hub", monkeypatch):
        load_pipeline("owner/name", device="cpu").load_unet()
    pipeline = load_pipeline("owner/name", device="cpu")
    pipeline.load_unet()
    with pytest.raises(FileNotFoundError, match="the vae of model 'owner/name' is neither") as raised:
        pipeline.vae  # noqa: B018
    assert _selected(str(raised.value), repository) >= {"vae/config.json", "vae/diffusion_pytorch_model.safetensors"}
    assert not any(name.startswith("unet") for name in _selected(str(raised.value), repository))
    (pipeline.files.source.directory / "vae" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"has no vae/config\.json: try: hf download owner/name"):
        read_model_files("owner/name")
    shutil.rmtree(pipeline.files.source.directory / "tokenizer")
    shutil.copy(repository / "vae" / "config.json", pipeline.files.source.directory / "vae")
    with pytest.raises(ValueError, match=r"neither tokenizer/tokenizer\.json nor .*hf download"):
        read_model_files("owner/name")


@pytest.mark.parametrize("save", [None, save_random_sdxl])
def test_the_command_of_the_error_fetches_all_that_is_needed(tmp_path, repository, save, monkeypatch):
    if save is not None:
        repository = save(tmp_path / "xl")
    needed = {path.relative_to(repository).as_posix() for path in repository.rglob("*.safetensors")}
    needed = NEEDED if save is None else needed | {"tokenizer_2/tokenizer.json", "text_encoder_2/config.json"}
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE") as raised:
        load_pipeline("owner/other@v2", device="cpu")
    assert "hf download owner/other --revision v2 --include" in str(raised.value)
    selected = _selected(str(raised.value), repository)
    assert selected >= needed
    assert not [
        name
        for name in selected
        if name.endswith((".bin", ".msgpack")) or ("/" not in name and name != "model_index.json")
    ]


def _selected(message: str, root: Path) -> set[str]:
    """The files of a repository that the command in a message fetches."""
    words = shlex.split(re.search(r"`([^`]*)`", message)[1])
    patterns = [after for word, after in itertools.pairwise(words) if word == "--include"]
    names = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    return {name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)}


def test_a_repository_of_another_format_is_said(tmp_path, monkeypatch):
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "model.safetensors").write_bytes(b"x")
    with (
        serve(tmp_path / "repository", tmp_path / "hub", monkeypatch) as hub,
        pytest.raises(FileNotFoundError, match=r"'owner/name': the repository does not hold it.*model_index\.json"),
    ):
        load_pipeline("owner/name", device="cpu")
    assert hub.downloaded == []


def test_a_download_that_breaks_off_is_an_error_that_says_so(tmp_path, repository, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the library's own attempts
    with serve(repository, tmp_path / "hub", monkeypatch) as hub:
        hub.breaks_off_at = "vae/config.json"
        with pytest.raises(FileNotFoundError, match=r"model 'owner/name' is neither.*broke off"):
            load_pipeline("owner/name", device="cpu")
        hub.breaks_off_at = None
        pipeline = load_pipeline("owner/name", device="cpu")
        hub.breaks_off_at = "unet/diffusion_pytorch_model.safetensors"
        with pytest.raises(FileNotFoundError, match=r"the unet of model 'owner/name'.*broke off.*--include 'unet/\*"):
            pipeline.load_unet()
        hub.breaks_off_at = None
        pipeline.load_unet()


def test_safetensors_are_read_before_pickles_of_another_variant(tmp_path, tiny_model):
    model = shutil.copytree(tiny_model, tmp_path / "m")
    weights = model / "text_encoder" / "model.safetensors"
    weights.replace(weights.with_suffix(".fp16.safetensors"))
    (model / "text_encoder" / "pytorch_model.bin").write_bytes(b"no pickle")
    encoder = load_pipeline(model, device="cpu").prompts
    other = load_pipeline(tiny_model, device="cpu").prompts
    ids = [bank.ids(["a"]) for bank in (encoder, other)]
    assert torch.equal(encoder.embeddings(ids[0]).tokens_BLD, other.embeddings(ids[1]).tokens_BLD)
