"""The phase for few steps: the sampler's own levels and steps, and who learns from what."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sr3.data import save_pack
from sr3.few_steps import FewSteps, draw, energy_score, levels, step
from sr3.loop import LoopConfig
from sr3.presets import PRESETS, build
from sr3.train import TrainConfig, train
from tests.conftest import SMALL


@pytest.fixture
def pipeline():
    torch.manual_seed(0)
    made = build(SMALL)
    for parameter in made.unet.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return made


def test_the_levels_are_those_that_the_sampler_visits(pipeline):
    seen = []
    pipeline.unet.register_forward_pre_hook(lambda module, inputs: seen.append(float(inputs[2][0])))
    low_res = np.zeros((8, 8, 3), np.uint8)
    for path, count in zip(levels(pipeline.scheduler, (1, 2, 4)), (1, 2, 4), strict=True):
        seen.clear()
        pipeline(low_res, count)
        assert seen == pytest.approx(path.tolist()) and len(path) == count


def test_a_step_is_the_schedulers(pipeline):
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(4)
    (path,) = levels(scheduler, (4,))
    noisy, sample = torch.randn(2, 1, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    for index in range(3):
        expected = scheduler.step(sample, scheduler.timesteps[index], noisy).prev_sample
        assert torch.allclose(step(noisy, sample, path[index], path[index + 1]), expected, atol=1e-4)


def test_every_level_is_drawn(pipeline):
    paths = levels(pipeline.scheduler, (1, 4))
    path, gamma = draw(paths, torch.Generator().manual_seed(0), 400)
    assert any(torch.equal(path, each) for each in paths)
    assert set(gamma.tolist()) == set(torch.cat(paths).tolist())
    assert 0.55 < (gamma == paths[0][0]).float().mean() < 0.7  # half for one step, and a quarter of the others'


def batch(seed: int = 0):
    draw = torch.Generator().manual_seed(seed)
    high_res = torch.rand(2, 3, 32, 32, generator=draw) * 2 - 1
    return torch.nn.functional.avg_pool2d(high_res, 4), high_res, torch.zeros(2)


def test_both_terms_teach_the_denoiser_alone(pipeline):
    model = FewSteps(pipeline.encoder, pipeline.unet, 1.0)
    (path,) = levels(pipeline.scheduler, (2,))
    noise = torch.randn(4, 48, 8, 8, generator=torch.Generator().manual_seed(1))
    for term in ("denoising", "energy"):
        model.zero_grad(set_to_none=True)
        model(*batch(), path[:1].expand(2), noise, path)[term].backward()
        reached = {
            n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0
        }
        assert reached == {"unet"}


def test_energy_score_is_least_for_samples_of_the_targets_own_kind():
    draw = torch.Generator().manual_seed(0)

    def stripes(strength: float) -> torch.Tensor:
        return strength * torch.randn(64, 3, 8, 1, generator=draw).repeat_interleave(4, 2).expand(64, 3, 32, 32)

    kinds = {
        "alike": lambda: stripes(1),
        "mean": lambda: stripes(0),
        "grain": lambda: torch.randn(64, 3, 32, 32, generator=draw),
        "faint grain": lambda: 0.3 * torch.randn(64, 3, 32, 32, generator=draw),
        "strong": lambda: stripes(1.7),
    }
    scores = {
        name: sum(float(energy_score(kind(), kind(), stripes(1))) for _ in range(10)) / 10
        for name, kind in kinds.items()
    }
    assert sorted(scores, key=scores.__getitem__)[0] == "alike"
    assert scores["mean"] < scores["faint grain"] < scores["grain"]


@pytest.mark.parametrize("energy", [0.0, 1.0])
def test_a_phase_trains_the_denoiser_and_leaves_the_encoder(pipeline, tmp_path, monkeypatch, energy):
    monkeypatch.setitem(PRESETS, "bundled", SMALL)
    crops = np.random.default_rng(0).integers(0, 256, (5, 48, 48, 3), np.uint8)
    save_pack(tmp_path / "pack", crops, [{"file": "noise"}])
    pipeline.save_pretrained(tmp_path / "init")
    loop = LoopConfig(steps=4, batch_size=2, warmup=1, device="cpu", save_every=2, log_every=1)
    config = TrainConfig(tmp_path / "pack", tmp_path / "out", init=tmp_path / "init", crop_size=32, loop=loop)
    config = replace(config, phase="few-steps", energy=energy)
    trained = train(config)
    before, after = (p.encoder.state_dict() for p in (pipeline, trained))
    assert all(torch.allclose(before[k], after[k], atol=2e-3) for k in before)
    assert not torch.allclose(pipeline.unet.tail.weight, trained.unet.tail.weight, atol=1e-4)
    train(replace(config, out=tmp_path / "broken", loop=replace(loop, minutes=1e-9)))
    train(replace(config, out=tmp_path / "broken"))
    whole, resumed = (load_file(tmp_path / name / "state.safetensors") for name in ("out", "broken"))
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


@pytest.mark.parametrize("mean_loss", ["l1", "psnr"])
def test_a_phase_trains_the_encoder_and_leaves_the_denoiser(pipeline, tmp_path, monkeypatch, mean_loss):
    monkeypatch.setitem(PRESETS, "bundled", SMALL)
    save_pack(tmp_path / "pack", np.random.default_rng(0).integers(0, 256, (5, 48, 48, 3), np.uint8), [])
    pipeline.save_pretrained(tmp_path / "init")
    loop = LoopConfig(steps=3, batch_size=2, warmup=1, device="cpu")
    config = TrainConfig(tmp_path / "pack", tmp_path / "out", init=tmp_path / "init", crop_size=32, loop=loop)
    trained = train(replace(config, phase="encoder", mean_loss=mean_loss))
    before, after = (p.unet.state_dict() for p in (pipeline, trained))
    assert all(torch.allclose(before[k], after[k], atol=2e-3) for k in before)  # as 16 bits hold them
    assert not torch.allclose(pipeline.encoder.head.weight, trained.encoder.head.weight, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"phase": "last"}, "phase is 'last'; it must be all, encoder or few-steps"),
        ({"init": None}, "needs --init"),
        ({"preset": "sr3-paper"}, "few-steps is not for the paper's"),
        ({"preset": "sr3-paper", "phase": "encoder"}, "encoder is not for the paper's"),
        ({"few_steps": (0,)}, "numbers from 1 up"),
        ({"energy": -1.0}, "energy at least 0"),
        ({"mean_loss": "l2"}, "mean_loss is 'l2'; it must be l1 or psnr"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes, message):
    config = TrainConfig(Path("none"), Path("none"), init=Path("none"), phase="few-steps")
    with pytest.raises(ValueError, match=message):
        train(replace(config, **changes))
