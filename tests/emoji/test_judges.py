import numpy as np
import pytest
import torch

from diffusion_gym.emoji import evaluate
from diffusion_gym.emoji.corruptions import CORRUPTIONS
from diffusion_gym.emoji.grammar import parse
from diffusion_gym.emoji.nouns import COLOR_CLASSES, MAX_COUNT, NOUN_INDEX, NOUN_NAMES, PLACE_CLASSES
from diffusion_gym.emoji.preference import Preference, PreferenceNet, tokenize
from diffusion_gym.emoji.pretrain.reader import IGNORE, labels
from diffusion_gym.emoji.quality import Quality, QualityNet
from diffusion_gym.emoji.reader import ABSENT_WEIGHT, SURE, Reader, ReaderNet
from diffusion_gym.emoji.scenes import sample_batch


class TruthfulNet(torch.nn.Module):
    """Reads the number of a scene in the first pixel and answers with that scene's ground truth."""

    def __init__(self, prompts):
        super().__init__()
        self.scenes = [labels(parse(prompt)) for prompt in prompts]
        self.anchor = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images):
        counts = torch.zeros(len(images), len(NOUN_NAMES), MAX_COUNT + 1)
        colors = torch.zeros(len(images), len(NOUN_NAMES), len(COLOR_CLASSES))
        places = torch.zeros(len(images), len(PLACE_CLASSES))
        for b, image in enumerate(images):
            count, color, place = self.scenes[round(image[0, 0, 0].item() * 100)]
            counts[b, torch.arange(len(NOUN_NAMES)), torch.from_numpy(count)] = 9
            colors[b, torch.arange(len(NOUN_NAMES)), torch.from_numpy(np.where(color == IGNORE, 0, color))] = 9
            places[b, place] = 9
        return counts, colors, places


SHOWN = [
    "a green rabbit",
    "a rabbit",
    "a cat and a dog",
    "a cat",
    "four wolves in the park",
    "three wolves in the park",
]
# Each place must be settled for its labels.
SHOWN_SCENES = [text if " in " in text else f"{text} on the moon" for text in SHOWN]


def truthful(prompts, rows):
    reader = Reader(TruthfulNet(prompts))
    images = torch.zeros(len(rows), 3, 64, 64)
    images[:, 0, 0, 0] = torch.tensor(rows) / 100
    return reader, images


@pytest.mark.parametrize(
    ("shown", "asked", "fraction"),
    [
        (0, "a green rabbit", 1.0),
        (0, "a rabbit", 1.0),  # a colour that is not asked for is free
        (1, "a green rabbit", 3 / 4),  # nothing else, noun, count are right; the colour is not
        (2, "a cat and a dog", 1.0),
        (2, "a dog and a cat", 1.0),
        (3, "a cat and a dog", 3 / 5),  # the dog is missing: noun and count are wrong
        (2, "a cat", 2 / 3),  # something else is there
        (4, "four wolves in the park", 1.0),
        (5, "four wolves in the park", 3 / 4),
        (4, "four wolves on the moon", 3 / 4),
        (0, "a pig", 0.0),
    ],
)
def test_accuracy_counts_the_attributes_of_a_prompt(shown, asked, fraction):
    reader, images = truthful(SHOWN_SCENES, [shown])
    accuracy = reader.accuracy(images, [asked])
    assert accuracy.fraction.item() == pytest.approx(fraction)
    assert accuracy.all_right.item() == (fraction == 1)


def test_a_green_frog_may_be_any_frog_that_is_not_painted():
    reader, images = truthful(["a frog on the moon", "a blue frog on the moon"], [0, 1])
    assert reader.accuracy(images, ["a green frog"] * 2).all_right.tolist() == [True, False]


def test_read_names_what_is_there():
    reader, images = truthful(SHOWN_SCENES, [0, 4, 2])
    green, wolves, pair = reader.read(images)
    assert [(o.noun, o.count, o.color) for o in green.objects] == [("rabbit", 1, "green")]
    assert [(o.noun, o.count, o.color) for o in wolves.objects] == [("wolf", 4, "natural")]
    assert wolves.place == "park"
    assert {o.noun for o in pair.objects} == {"cat", "dog"}
    assert 0.9 < wolves.objects[0].count_confidence <= 1
    assert 0.9 < wolves.place_confidence <= 1


def test_no_more_than_four_objects_are_claimed_and_the_surer_noun_stays():
    class Torn(TruthfulNet):
        def forward(self, images):
            counts, colors, places = super().forward(images)
            counts[:, NOUN_INDEX["elephant"], 4] = 5  # four elephants, less surely than the four wolves
            return counts, colors, places

    reader = Reader(Torn(["four wolves in the park", "a cat on the moon"]))
    images = torch.zeros(1, 3, 64, 64)
    assert [(o.noun, o.count) for o in reader.read(images)[0].objects] == [("wolf", 4)]
    assert reader.accuracy(images, ["four wolves in the park"]).all_right.item()


@pytest.mark.parametrize(("share", "seen"), [(SURE - 0.02, 0), (SURE + 0.02, 1)])
def test_a_noun_is_claimed_when_it_is_sure_and_the_weight_of_absence_is_undone(share, seen):
    class Unsure(TruthfulNet):
        def forward(self, images):
            counts, colors, places = super().forward(images)
            counts[:, NOUN_INDEX["cat"]] = -100.0
            # In the loss an absent noun weighs less, so these logits stand for `share` of one cat.
            counts[:, NOUN_INDEX["cat"], 0] = np.log(ABSENT_WEIGHT * (1 - share))
            counts[:, NOUN_INDEX["cat"], 1] = np.log(share)
            return counts, colors, places

    reader = Reader(Unsure(["a cat on the moon"]))
    images = torch.zeros(1, 3, 64, 64)
    assert reader.probabilities(images)[0][0, NOUN_INDEX["cat"], 1] == pytest.approx(share, abs=1e-4)
    assert reader.classes(images)[0][0, NOUN_INDEX["cat"]] == seen


def test_attributes_right_is_one_for_a_truthful_reader_and_falls_with_a_lie():
    settled = ["a green rabbit on the moon", "two cats in the park"]
    reader, images = truthful(settled, [0, 1])
    scenes = [parse(prompt) for prompt in settled]
    assert evaluate.attributes_right(reader, images, scenes) == (1.0, 1.0)
    lies, share = evaluate.attributes_right(reader, images.flip(0), scenes)
    assert lies == 0
    assert share < 0.5


def test_a_prompt_outside_the_grammar_is_refused():
    reader, images = truthful(SHOWN_SCENES, [0])
    with pytest.raises(ValueError, match="a nebula"):
        reader.accuracy(images, ["a nebula"])


@pytest.fixture(params=["reader", "preference", "quality"])
def score(request):
    """Each judge, untrained, as a function of pictures and prompts."""
    torch.manual_seed(0)
    if request.param == "reader":
        reader = Reader(ReaderNet())
        return lambda images, prompts: reader.accuracy(images, prompts).fraction
    if request.param == "preference":
        return Preference(PreferenceNet()).score
    quality = Quality(QualityNet())
    return lambda images, prompts: quality.score(images)


def test_a_score_is_one_number_a_picture_and_does_not_depend_on_the_batch(score):
    images = torch.rand(5, 3, 64, 64)
    prompts = ["a cat", "two dogs", "a green rabbit", "a cow and a pig", "a bear on the moon"]
    together = score(images, prompts)
    assert together.shape == (5,)
    assert together.dtype == torch.float32
    alone = torch.cat([score(images[i : i + 1], prompts[i : i + 1]) for i in range(5)])
    assert torch.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize(
    ("images", "error"),
    [
        (torch.rand(2, 3, 32, 32), ValueError),
        (torch.rand(3, 64, 64), ValueError),
        (torch.full((2, 3, 64, 64), float("nan")), ValueError),
        (torch.zeros(2, 3, 64, 64, dtype=torch.uint8), TypeError),
        (np.zeros((2, 3, 64, 64)), TypeError),
    ],
)
def test_what_is_not_a_batch_of_pictures_is_refused(score, images, error):
    with pytest.raises(error, match="images must"):
        score(images, ["a cat", "a dog"])


def test_prompts_must_go_with_the_pictures():
    preference = Preference(PreferenceNet())
    with pytest.raises(ValueError, match="1 entries for 2 images"):
        preference.score(torch.rand(2, 3, 64, 64), ["a cat"])
    with pytest.raises(TypeError, match="list of strings"):
        preference.score(torch.rand(2, 3, 64, 64), "ab")


def test_preference_depends_on_prompt_and_picture_and_not_on_padding():
    torch.manual_seed(0)
    net = PreferenceNet().eval()
    image = torch.rand(1, 3, 64, 64)
    cat, dog = (net(image, tokenize([text])) for text in ("a cat", "a dog"))
    assert not torch.allclose(cat, dog)
    assert not torch.allclose(cat, net(1 - image, tokenize(["a cat"])))
    tokens = tokenize(["a cat"])
    changed = tokens.clone()
    changed[:, 6:] = 300  # whatever follows the end of the text is not looked at
    changed[:, 4:6] = 1
    assert torch.allclose(net(image, tokens), net(image, changed), atol=1e-6)


def test_standardising_moves_and_scales_the_scores():
    torch.manual_seed(0)
    net = PreferenceNet().eval()
    images, tokens = torch.rand(4, 3, 64, 64), tokenize(["a cat"] * 4)
    raw = net(images, tokens)
    net.mean.fill_(2.0)
    net.std.fill_(4.0)
    assert torch.allclose(net(images, tokens), (raw - 2) / 4)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_grows_with_its_strength_and_keeps_shape_and_input(name):
    rng = np.random.default_rng(0)
    pictures, _ = sample_batch(rng, 12)
    before = pictures.copy()
    harm = []
    for strength in (0.0, 0.5, 1.0):
        spoilt = np.stack([CORRUPTIONS[name](picture, strength, np.random.default_rng(1)) for picture in pictures])
        assert spoilt.shape == pictures.shape
        assert spoilt.dtype == np.uint8
        harm.append(np.abs(spoilt.astype(int) - pictures).mean())
    assert 0 < harm[0] < harm[1] < harm[2]
    assert np.array_equal(pictures, before)


def test_judges_are_different_architectures_without_common_layers():
    kinds = [{type(m).__name__ for m in net.modules()} for net in (ReaderNet(), PreferenceNet(), QualityNet())]
    marks = [{"BatchNorm2d"}, {"TransformerDecoderLayer"}, {"DepthwiseBlock"}]
    for i, mark in enumerate(marks):
        assert [bool(mark & kind) for kind in kinds] == [j == i for j in range(3)]
    assert NOUN_INDEX["rabbit"] == 0
