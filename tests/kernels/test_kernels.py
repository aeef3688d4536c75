"""Kernels against the diffusers scheduler of the same name, torch.distributions and closed forms."""

import math

import diffusers
import pytest
import torch

from diffusion_gym.kernels import Kernel, kl_divergence, log_prob, make_kernel

SD = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "clip_sample": False,
}
SHAPE = (3, 4, 5, 5)


def normal(seed: int, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def scheduler_step(scheduler, k: int, out, x, noise, monkeypatch, **options):
    """One step of a diffusers scheduler with the noise we choose."""
    module = __import__(type(scheduler).__module__, fromlist=["randn_tensor"])
    monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: noise)
    return scheduler.step(out, scheduler.timesteps[k], x, **options)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", [5, 20, 50])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("eta", [1.0, 0.3])
def test_ddim_is_the_step_of_diffusers(prediction_type, steps, spacing, eta, monkeypatch):
    config = {**SD, "prediction_type": prediction_type, "timestep_spacing": spacing}
    kernel = make_kernel("ddim", config, steps, eta)
    scheduler = diffusers.DDIMScheduler(**config)
    scheduler.set_timesteps(steps)
    assert kernel.timesteps_T.tolist() == scheduler.timesteps.tolist()
    for k in range(steps):
        out, x, noise = normal(3 * k), normal(3 * k + 1), normal(3 * k + 2)
        theirs = scheduler_step(scheduler, k, out, x, noise, monkeypatch, eta=eta)
        ours = kernel.sample(kernel.mean(out, x, k), noise, k)
        torch.testing.assert_close(ours, theirs.prev_sample, rtol=1e-5, atol=1e-5)
        x0 = kernel.predicted_x0(out, x, k)
        torch.testing.assert_close(x0, theirs.pred_original_sample, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", [5, 20, 50])
def test_ddpm_is_the_step_of_diffusers(prediction_type, steps, monkeypatch):
    config = {k: v for k, v in SD.items() if k != "set_alpha_to_one"}
    config |= {"prediction_type": prediction_type, "variance_type": "fixed_large"}
    kernel = make_kernel("ddpm", {**config, "set_alpha_to_one": False}, steps)
    scheduler = diffusers.DDPMScheduler(**config)
    scheduler.set_timesteps(steps)
    assert kernel.timesteps_T.tolist() == scheduler.timesteps.tolist()
    for k in range(steps):
        out, x, noise = normal(3 * k), normal(3 * k + 1), normal(3 * k + 2)
        theirs = scheduler_step(scheduler, k, out, x, noise, monkeypatch)
        ours = kernel.sample(kernel.mean(out, x, k), noise, k)
        torch.testing.assert_close(ours, theirs.prev_sample, rtol=1e-5, atol=1e-5)
        x0 = kernel.predicted_x0(out, x, k)
        torch.testing.assert_close(x0, theirs.pred_original_sample, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_clipped_x0_is_the_step_of_diffusers(prediction_type, monkeypatch):
    config = {**SD, "clip_sample": True, "clip_sample_range": 0.7, "prediction_type": prediction_type}
    for name, cls, options in [
        ("ddim", diffusers.DDIMScheduler, {"eta": 0.8}),
        ("ddpm", diffusers.DDPMScheduler, {}),
    ]:
        own = {k: v for k, v in config.items() if name == "ddim" or k != "set_alpha_to_one"}
        scheduler = cls(**own, **({"variance_type": "fixed_large"} if name == "ddpm" else {}))
        scheduler.set_timesteps(10)
        kernel = make_kernel(name, config, 10, options.get("eta"))
        for k in range(10):
            out, x, noise = normal(k), normal(k + 100), normal(k + 200)
            theirs = scheduler_step(scheduler, k, out, x, noise, monkeypatch, **options)
            ours = kernel.sample(kernel.mean(out, x, k), noise, k)
            torch.testing.assert_close(ours, theirs.prev_sample, rtol=1e-5, atol=1e-5)
            assert kernel.predicted_x0(out, x, k).abs().max() <= 0.7


def test_ddim_at_eta_1_is_euler_ancestral_in_other_coordinates(monkeypatch):
    config = {k: v for k, v in SD.items() if k not in ("set_alpha_to_one", "clip_sample")}
    euler = diffusers.EulerAncestralDiscreteScheduler(**config, timestep_spacing="leading")
    euler.set_timesteps(20)
    kernel = make_kernel("ddim", SD, 20, 1.0)
    assert kernel.timesteps_T.tolist() == euler.timesteps.long().tolist()
    alpha_bar = euler.alphas_cumprod
    for k in range(19):  # Euler's last step has no noise
        t, p = int(kernel.timesteps_T[k]), int(kernel.timesteps_T[k + 1])
        out, x, noise = normal(k), normal(k + 100), normal(k + 200)
        euler.scale_model_input(x, euler.timesteps[k])
        theirs = scheduler_step(euler, k, out, x / alpha_bar[t].sqrt(), noise, monkeypatch).prev_sample
        ours = kernel.sample(kernel.mean(out, x, k), noise, k)
        torch.testing.assert_close(ours / alpha_bar[p].sqrt(), theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_a_batch_of_mixed_steps_equals_its_samples_one_by_one(name):
    kernel = make_kernel(name, SD, 20)
    step = torch.tensor([19, 0, 7])
    out, x, noise, ref = normal(0), normal(1), normal(2), normal(3)
    mean = kernel.mean(out, x, step)
    action = kernel.sample(mean, noise, step)
    assert kernel.sigma(step).shape == (3, 1, 1, 1)
    assert kernel.sigma(7).shape == ()
    for i, k in enumerate(step.tolist()):
        one = slice(i, i + 1)
        torch.testing.assert_close(mean[one], kernel.mean(out[one], x[one], k), rtol=0, atol=0)
        torch.testing.assert_close(action[one], kernel.sample(mean[one], noise[one], k), rtol=0, atol=0)
        torch.testing.assert_close(kernel.log_prob(action, mean, step)[one], kernel.log_prob(action[one], mean[one], k))
        torch.testing.assert_close(
            kernel.kl_divergence(mean, ref, step)[one], kernel.kl_divergence(mean[one], ref[one], k)
        )
        assert kernel.timestep(step)[i] == kernel.timestep(k)


def test_log_prob_is_that_of_torch_distributions():
    kernel = make_kernel("ddim", SD, 20)
    step = torch.tensor([0, 10, 19])
    out, x, noise = (normal(i, dtype=torch.float64) for i in range(3))
    mean = kernel.mean(out, x, step)
    action = kernel.sample(mean, noise, step)
    theirs = torch.distributions.Normal(mean, kernel.sigma(step).double()).log_prob(action).flatten(1)
    torch.testing.assert_close(kernel.log_prob(action, mean, step, reduction="sum"), theirs.sum(1))
    torch.testing.assert_close(kernel.log_prob(action, mean, step, reduction="mean"), theirs.mean(1))
    single = kernel.log_prob(action.float(), mean.float(), step, reduction="mean")
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), theirs.mean(1), rtol=0, atol=1e-5)


def test_kl_is_that_of_torch_distributions_and_of_monte_carlo():
    kernel = make_kernel("ddim", SD, 50)
    k = 30
    shape = (1, 1, 2, 2)
    x, out, ref = (normal(i, shape, torch.float64) for i in range(3))
    mean, mean_ref = kernel.mean(out, x, k), kernel.mean(ref, x, k)
    p = torch.distributions.Normal(mean, kernel.sigma(k).double())
    q = torch.distributions.Normal(mean_ref, kernel.sigma(k).double())
    exact = torch.distributions.kl_divergence(p, q).sum()
    ours = kernel.kl_divergence(mean, mean_ref, k, reduction="sum")
    torch.testing.assert_close(ours[0], exact)
    torch.testing.assert_close(4 * kernel.kl_divergence(mean, mean_ref, k, reduction="mean")[0], exact)
    torch.testing.assert_close(kernel.kl_weight(k).double() * (out - ref).square().sum(), exact, rtol=1e-5, atol=0)

    n = 200_000
    action = kernel.sample(mean.expand(n, 1, 2, 2), normal(9, (n, 1, 2, 2), torch.float64), k)
    difference = kernel.log_prob(action, mean, k, reduction="sum") - kernel.log_prob(
        action, mean_ref, k, reduction="sum"
    )
    error = difference.std() / math.sqrt(n)
    assert abs(difference.mean() - exact) < 4 * error
    assert 4 * error < 0.1 * exact


def test_kl_weights_of_stable_diffusion():
    """The coefficients derived in closed form for SD's betas: 50 steps, then the peak at 20 steps."""
    kernel = make_kernel("ddim", SD, 50)
    weights = [float(kernel.kl_weight(k)) for k in range(50)]
    assert weights[0] == pytest.approx(0.131, abs=5e-4)
    assert weights[48] == pytest.approx(5.36, abs=5e-3)
    assert weights[49] == pytest.approx(0.503, abs=5e-4)
    assert sum(weights) / 50 == pytest.approx(0.220, abs=5e-4)
    assert float(kernel.sigma(49)) == pytest.approx(0.02065, abs=5e-6)
    assert max(float(make_kernel("ddim", SD, 20).kl_weight(k)) for k in range(20)) == pytest.approx(14.7, abs=0.05)


@pytest.mark.parametrize("name", ["ddim", "ddpm"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_gradient_reaches_the_model_output(name, prediction_type):
    kernel = make_kernel(name, {**SD, "prediction_type": prediction_type}, 5)
    step = torch.tensor([4, 0])
    shape = (2, 1, 2, 2)
    x, noise = normal(1, shape, torch.float64), normal(2, shape, torch.float64)
    out = normal(0, shape, torch.float64).requires_grad_()
    action = kernel.sample(kernel.mean(out.detach(), x, step), noise, step)

    def score(output):
        return kernel.log_prob(action, kernel.mean(output, x, step), step, reduction="sum")

    assert torch.autograd.gradcheck(score, (out,), eps=1e-5)
    gradient = torch.autograd.grad(score(out).sum(), out)[0]
    expected = kernel.mean_output_T[step].view(-1, 1, 1, 1) * noise / kernel.sigma(step)
    torch.testing.assert_close(gradient, expected.double(), rtol=1e-5, atol=1e-5)


def test_half_precision_model_output_gives_float32():
    kernel = make_kernel("ddim", SD, 5)
    out, x = normal(0).bfloat16(), normal(1)
    mean = kernel.mean(out, x, 2)
    assert mean.dtype == torch.float32
    torch.testing.assert_close(mean, kernel.mean(out.float(), x, 2), rtol=0, atol=0)
    assert kernel.log_prob(x.bfloat16(), mean, 2).dtype == torch.float32


@pytest.mark.parametrize(
    ("sampler", "config", "eta", "says"),
    [
        ("ddim", {}, 0.0, "eta=0"),
        ("ddim", {"set_alpha_to_one": True}, 1.0, "step 19 of 20.*no density.*set_alpha_to_one=False"),
        ("ddim", {"steps_offset": 0}, 1.0, "timestep 0.*no density.*steps_offset=1"),
        ("ddpm", {"variance_type": "fixed_small"}, None, "no density.*fixed_large"),
        ("ddpm", {"steps_offset": 0}, None, "no density.*steps_offset=1"),
        ("ddpm", {"variance_type": "learned_range"}, None, "variance_type"),
        ("ddpm", {}, 0.5, "eta"),
        ("ddim", {}, float("nan"), "eta"),
        ("ddim", {"thresholding": True}, 1.0, "thresholding"),
        ("ddim", {"prediction_type": "flow"}, 1.0, "prediction_type"),
        ("euler_ancestral", {}, None, "sigma_up = 0"),
        ("heun", {}, None, "sampler must be one of"),
        ({"name": "ddim", "offset": 1}, {}, None, "cannot be changed"),
    ],
)
def test_settings_without_a_density_are_refused_with_the_reason(sampler, config, eta, says):
    with pytest.raises(ValueError, match=f"(?s){says}"):
        make_kernel(sampler, {**SD, **config}, 20, eta)


@pytest.mark.parametrize("steps", [0, -3, 1001])
def test_number_of_steps_is_checked(steps):
    with pytest.raises(ValueError, match="num_inference_steps"):
        make_kernel("ddim", SD, steps)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(("ddim", SD, 2.0), "num_inference_steps"), ((3, SD, 5), "sampler"), (("ddim", SD, 5, "1"), "eta")],
)
def test_types_are_checked(arguments, says):
    with pytest.raises(TypeError, match=says):
        make_kernel(*arguments)


def test_overrides_replace_the_configuration():
    kernel = make_kernel({"name": "ddim", "set_alpha_to_one": False}, {**SD, "set_alpha_to_one": True}, 20)
    assert torch.equal(kernel.sigma_T, make_kernel("ddim", SD, 20).sigma_T)


def test_reductions_are_checked():
    x = normal(0)
    for function in (log_prob, kl_divergence):
        with pytest.raises(ValueError, match="reduction"):
            function(x, x, torch.tensor(1.0), reduction="average")


def test_a_kernel_moves_and_cannot_be_changed():
    kernel = make_kernel("ddim", SD, 5)
    moved = kernel.to("meta")
    assert isinstance(moved, Kernel)
    assert moved.device.type == "meta"
    assert moved.timesteps_T.device.type == "meta"
    assert moved.num_steps == 5
    with pytest.raises(AttributeError):
        kernel.sampler = "other"  # type: ignore[misc]


@pytest.mark.parametrize("clip_sample", [False, True])
@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_a_step_never_looks_at_values(name, clip_sample):
    """On the meta device a tensor has no values: whatever would make the host wait for a GPU raises there."""
    kernel = make_kernel(name, {**SD, "clip_sample": clip_sample}, 5).to("meta")
    out, x = torch.empty(SHAPE, device="meta", requires_grad=True), torch.empty(SHAPE, device="meta")
    for step in (2, torch.zeros(3, dtype=torch.int64, device="meta")):
        mean = kernel.mean(out, x, step)
        action = kernel.sample(mean, x, step)
        results = [
            kernel.log_prob(action, mean, step),
            kernel.kl_divergence(mean, x, step),
            kernel.predicted_x0(out, x, step),
            kernel.kl_weight(step),
            kernel.timestep(step),
        ]
        assert all(result.device.type == "meta" for result in results)
        results[0].sum().backward()
