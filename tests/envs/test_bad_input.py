"""Generated bad calls: each ends in an error that names the argument, and the environment goes on working."""

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffusion_gym.rewards import make_reward

ACCEPTED = (ValueError, TypeError)
SHAPE = (4, 8, 8)

many = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

not_text = st.one_of(
    st.integers(), st.floats(), st.booleans(), st.lists(st.integers(), max_size=2), st.binary(max_size=3)
)
words = st.text("abcdefgh", min_size=1, max_size=8)
blank = st.text(" \t\n", max_size=3)
bad_count = st.one_of(
    st.integers(max_value=0), st.integers(min_value=1001), st.floats(), st.text(max_size=3), st.booleans(), st.binary()
)
bad_weight = st.one_of(st.sampled_from([float("nan"), float("inf"), -float("inf")]), st.text(max_size=3), st.booleans())

BAD_ARGUMENTS = {
    "model": st.one_of(st.integers(), st.floats(), st.none(), st.just(""), words.map("no/such-{}".format)),
    "reward": st.one_of(
        st.integers(),
        words.map("no_reward_{}".format),
        st.just([]),
        st.just({}),
        st.lists(st.integers(), min_size=1, max_size=3),
        st.dictionaries(st.just("jpeg_compressibility"), bad_weight, min_size=1),
        bad_weight.map(lambda weight: [("jpeg_compressibility", weight)]),
    ),
    "prompts": st.one_of(
        st.integers(),
        st.floats(),
        words,
        words.map("missing-{}.txt".format),
        st.lists(st.one_of(not_text, blank), max_size=3),
        st.tuples(words, not_text).map(list),
        st.just([{"text": "a"}]),
        st.one_of(st.integers(max_value=0), bad_weight).map(lambda weight: [{"prompt": "a", "weight": weight}]),
    ),
    "prompt_sampler": st.one_of(words, st.integers(), st.just("weighted"), st.lists(st.integers())),
    "num_inference_steps": bad_count,
    "sampler": st.one_of(
        words,
        st.integers(),
        st.none(),
        st.sampled_from(["euler_ancestral", "pndm", {}, {"name": 3}, {"name": "ddim", "steps": 3}]),
        st.just({"name": "ddim", "set_alpha_to_one": True}),
        st.just({"name": "ddpm", "variance_type": "fixed_small"}),
        not_text.map(lambda value: {"name": "ddim", "timestep_spacing": value}),
    ),
    "eta": st.one_of(
        st.floats(max_value=0.0), st.floats(min_value=1.0, exclude_min=True), st.text(max_size=3), st.booleans()
    ),
    "device": st.one_of(words, st.integers(), st.none(), st.sampled_from(["cuda:77", "meta", "cpu:x"])),
    "dtype": st.one_of(words, st.integers(), st.none(), st.sampled_from([torch.int8, torch.float64, "float64", float])),
    "render_mode": st.one_of(words, st.integers(), st.sampled_from(["ansi", "rgb"])),
}
BAD_VECTOR_ARGUMENTS = {
    "num_envs": st.one_of(st.integers(max_value=0), st.floats(), st.text(max_size=3), st.none(), st.booleans()),
    "backend": st.one_of(words, st.integers(), st.none()),
    "prompt_embedding": st.one_of(words, st.integers(), st.none()),
}


def one_bad(arguments):
    return st.sampled_from(sorted(arguments)).flatmap(lambda name: st.tuples(st.just(name), arguments[name]))


def refuses(call, name):
    with pytest.raises(ACCEPTED) as caught:
        call()
    assert name in str(caught.value), f"{caught.value!r} does not name {name!r}"


def play(env, batch=()):
    env.reset(seed=0)
    for _ in range(3):
        terminated = env.step(np.zeros((*batch, *SHAPE), dtype=np.float32))[2]
    assert np.all(terminated)


@many
@given(bad=one_bad(BAD_ARGUMENTS))
def test_make(env_arguments, bad):
    name, value = bad
    bare = gymnasium.spec("TextToImage-v0").entry_point
    creator = gymnasium.envs.registration.load_env_creator(bare)
    refuses(lambda: creator(**{**env_arguments, name: value}), name)


@many
@given(bad=one_bad({**BAD_ARGUMENTS, **BAD_VECTOR_ARGUMENTS}))
def test_make_vec(env_arguments, bad):
    name, value = bad
    refuses(lambda: gymnasium.make_vec("TextToImage-v0", **{"num_envs": 2, **env_arguments, name: value}), name)


@pytest.fixture(scope="module")
def env(env_arguments):
    made = gymnasium.make("TextToImage-v0", **env_arguments).unwrapped
    play(made)
    return made


@pytest.fixture(scope="module")
def envs(env_arguments):
    made = gymnasium.make_vec("TextToImage-v0", num_envs=2, **env_arguments)
    play(made, (2,))
    return made


bad_seed = st.one_of(st.integers(max_value=-1), st.floats(), words, st.booleans(), st.binary(max_size=2))
bad_options = st.one_of(
    st.integers(),
    words,
    st.lists(st.integers()),
    st.dictionaries(words.map("key_{}".format), st.integers(), min_size=1, max_size=2),
    st.one_of(not_text, blank).filter(lambda value: not isinstance(value, list)).map(lambda value: {"prompt": value}),
)
bad_vector_options = st.one_of(
    bad_options,
    st.lists(words, max_size=4).filter(lambda value: len(value) != 2).map(lambda value: {"prompt": value}),
    st.tuples(words, blank).map(lambda value: {"prompt": list(value)}),
    st.one_of(
        st.just([True, False]),
        st.integers(),
        words,
        st.integers(0, 4).filter(lambda n: n != 2).map(lambda n: np.ones(n, dtype=bool)),
        st.just(np.array([1, 0])),
        st.just(np.zeros(2, dtype=bool)),
    ).map(lambda value: {"reset_mask": value}),
)


@many
@given(seed=bad_seed, options=bad_options, which=st.booleans())
def test_reset(env, seed, options, which):
    if which:
        refuses(lambda: env.reset(seed=seed), "seed")
    else:
        refuses(lambda: env.reset(options=options), "options")
    play(env)


@many
@given(seed=st.one_of(bad_seed, st.lists(bad_seed, max_size=4)), options=bad_vector_options, which=st.booleans())
def test_vector_reset(envs, seed, options, which):
    if which:
        refuses(lambda: envs.reset(seed=seed), "seed")
    else:
        refuses(lambda: envs.reset(options=options), "options")
    play(envs, (2,))


def bad_actions(shape):
    """Arrays of another shape or dtype, of values outside the space, and things that are no arrays."""
    wrong_shape = st.lists(st.integers(0, 5), max_size=5).map(tuple).filter(lambda s: s != shape)
    outside = st.sampled_from([float("nan"), float("inf"), -float("inf"), 1e4, -1e30])

    def with_one(value):
        action = np.zeros(shape, dtype=np.float32)
        action.flat[-1] = value
        return action

    return st.one_of(
        wrong_shape.map(lambda s: np.zeros(s, dtype=np.float32)),
        wrong_shape.map(torch.zeros),
        outside.map(with_one),
        outside.map(lambda value: torch.tensor(with_one(value))),
        st.sampled_from([np.complex64, np.bool_, object, "U3"]).map(lambda dtype: np.zeros(shape).astype(dtype)),
        st.one_of(st.none(), words, st.integers(), st.floats(), st.lists(st.floats(), max_size=3)),
        st.just([[1.0], [1.0, 2.0]]),
        st.dictionaries(words, st.integers(), max_size=1),
    )


@many
@given(action=bad_actions(SHAPE), after=st.integers(0, 2))
def test_step(env, action, after):
    env.reset(seed=0)
    for _ in range(after):
        env.step(np.zeros(SHAPE, dtype=np.float32))
    refuses(lambda: env.step(action), "action")
    for _ in range(3 - after):
        terminated = env.step(np.zeros(SHAPE, dtype=np.float32))[2]
    assert terminated


@many
@given(action=bad_actions((2, *SHAPE)), after=st.integers(0, 2))
def test_vector_step(envs, action, after):
    envs.reset(seed=0)
    for _ in range(after):
        envs.step(np.zeros((2, *SHAPE), dtype=np.float32))
    refuses(lambda: envs.step(action), "action")
    for _ in range(3 - after):
        terminated = envs.step(np.zeros((2, *SHAPE), dtype=np.float32))[2]
    assert terminated.all()


@many
@given(slots=st.one_of(st.lists(st.integers(-3, 5), max_size=4), st.floats(), st.none(), words))
def test_step_slots(envs, slots):
    if isinstance(slots, list) and slots and len(set(slots)) == len(slots) and set(slots) <= {0, 1}:
        slots = [*slots, slots[0]]
    envs.reset(seed=0)
    refuses(lambda: envs.step_slots(slots, np.zeros((2, *SHAPE))), "slots")
    play(envs, (2,))


@many
@given(
    bad=st.one_of(
        st.tuples(st.just("images"), st.one_of(st.none(), words, st.integers(), st.just(np.zeros((2, 3, 4, 4))))),
        st.tuples(
            st.just("images"),
            st.lists(st.integers(0, 4), max_size=5)
            .filter(lambda s: len(s) != 4 or s[1] != 3 or 0 in s)
            .map(torch.zeros),
        ),
        st.tuples(st.just("images"), st.just(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))),
        st.tuples(st.just("prompts"), st.one_of(st.none(), words, st.integers())),
        st.tuples(st.just("prompts"), st.lists(words, max_size=4).filter(lambda p: len(p) != 2)),
        st.tuples(st.just("prompts"), st.lists(not_text, min_size=2, max_size=2)),
        st.tuples(st.just("metadata"), st.one_of(st.none(), words, st.integers())),
        st.tuples(st.just("metadata"), st.lists(st.just({}), max_size=4).filter(lambda m: len(m) != 2)),
    )
)
def test_rewards(bad):
    arguments = {"images": torch.zeros(2, 3, 4, 4), "prompts": ["a", "b"], "metadata": [{}, {}]}
    reward = make_reward("jpeg_compressibility")
    refuses(lambda: reward(**{**arguments, bad[0]: bad[1]}), bad[0])
    assert reward(**arguments).total.shape == (2,)


@many
@given(
    returned=st.one_of(
        st.lists(st.sampled_from([float("nan"), float("inf"), -float("inf")]), min_size=2, max_size=2),
        st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), max_size=5).filter(lambda r: len(r) != 2),
        st.none(),
        words,
        st.floats(),
        st.lists(st.integers(1, 3), min_size=2, max_size=3).map(torch.zeros),
        st.sampled_from([RuntimeError("out of memory"), KeyError("k"), ZeroDivisionError()]),
    )
)
def test_rewards_that_misbehave(env_arguments, returned):
    def judge(images, prompts, metadata):
        if isinstance(returned, Exception):
            raise returned
        return returned

    envs = gymnasium.make_vec(
        "TextToImage-v0", num_envs=2, **{**env_arguments, "reward": judge, "num_inference_steps": 1}
    )
    envs.reset(seed=0, options={"prompt": "a purple whale"})
    with pytest.raises(ValueError, match=r"reward 'judge' .*'a purple whale'"):
        envs.step(np.zeros((2, *SHAPE), dtype=np.float32))
    assert envs.observe()["step"].tolist() == [0, 0]
