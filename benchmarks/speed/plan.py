"""How much the benchmark does."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is done.

    Attributes:
        model: the model; the reward of the second overhead, and all of `learning`, need "emoji".
        reward: of everything that only measures cost.
        second_reward: whose cost is reported beside it; None for none.
        pictures: pictures an iteration.
        steps: denoising steps.
        repeats: rounds of alternating iterations that are timed, after one that is not.
        many_pictures: pictures an iteration, growing.
        many_steps: denoising steps, growing.
        many_micro_batches: transitions in one call of the UNet in the update, growing.
        many_sizes: height and width of the latents of models with random weights, growing.
        size_pictures: pictures an iteration of those.
        scaling_steps: denoising steps where something else grows.
        cases: of `same_work`, by name.
        splits: into how many calls the peer tries to split a step's share of an optimizer step.
        prompts: of the trainings to the same reward; no settings were chosen on them.
        seeds: of those trainings.
        budget: CPU seconds a training.
        points: evaluations a training.
        evaluated: pictures an evaluation.
        evaluation_steps: denoising steps in evaluation.
    """

    model: str = "emoji"
    reward: str = "jpeg_compressibility"
    second_reward: str | None = "emoji_preference"
    pictures: int = 32
    steps: int = 20
    repeats: int = 4
    many_pictures: tuple[int, ...] = (32, 64, 128, 256)
    many_steps: tuple[int, ...] = (5, 10, 20, 40)
    many_micro_batches: tuple[int, ...] = (8, 16, 32, 64, 128)
    many_sizes: tuple[int, ...] = (8, 16, 32)
    size_pictures: int = 8
    scaling_steps: int = 10
    cases: tuple[str, ...] = ("our adapters", "peer's adapters")
    splits: tuple[int, ...] = (1, 2, 4)
    prompts: tuple[str, ...] = ("a blue cat", "three foxes on the beach")
    seeds: tuple[int, ...] = (0, 1, 2)
    budget: float = 160.0
    points: int = 10
    evaluated: int = 48
    evaluation_steps: int = 20


QUICK = Plan(
    pictures=4,
    steps=4,
    repeats=2,
    many_pictures=(4, 16),
    many_steps=(2, 4),
    many_micro_batches=(4,),
    many_sizes=(8,),
    size_pictures=2,
    scaling_steps=2,
    cases=("our adapters",),
    splits=(1,),
    prompts=("a blue cat",),
    seeds=(0,),
    budget=8.0,
    points=2,
    evaluated=4,
    evaluation_steps=4,
)
