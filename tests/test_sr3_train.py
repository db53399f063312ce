"""Training: exact resume, overfitting, packs, records, the paper's preset, bad files."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import save_file
from safetensors.torch import load_file

import sr3.train
from degradation.arguments import from_json
from sr3.corpus import CorpusConfig, collect, is_held_out
from sr3.corpus import main as corpus_main
from sr3.data import Mix, SampleRecord, draw_record, load_pack, make_sample, save_pack
from sr3.loop import LoopConfig, fit, generator, learning_rate
from sr3.pipeline import load
from sr3.presets import PRESETS
from sr3.process import cosine_gamma, sample_gamma
from sr3.train import Cascade, TrainConfig, build, losses, make_batch, train
from tests.conftest import SMALL

LOOP = LoopConfig(steps=6, batch_size=2, warmup=2, device="cpu", save_every=100, log_every=1)


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "crops.safetensors"
    crops = np.random.default_rng(0).integers(0, 256, (5, 48, 48, 3), np.uint8)
    save_pack(path, crops, [{"file": "noise"}])
    return path


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(sr3.train.PRESETS, "bundled", SMALL)


def test_a_pack_survives_and_other_files_are_refused(pack, tmp_path):
    crops, manifest = load_pack(pack)
    assert crops.shape == (5, 48, 48, 3) and manifest == [{"file": "noise"}]
    (tmp_path / "a").write_bytes(b"something else")
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_pack(tmp_path / "a")


def test_an_epoch_visits_every_crop_once_and_a_record_makes_the_sample_again(pack):
    crops = load_pack(pack)[0]
    records = [draw_record((3, 1, i), crops, 32, Mix()) for i in range(5)]
    assert sorted(r.crop for r in records) == list(range(5))
    assert [r.crop for r in records] != [draw_record((3, 2, i), crops, 32, Mix()).crop for i in range(5)]
    again = SampleRecord(**json.loads(json.dumps(records[2].__dict__)))
    for first, second in zip(make_sample(records[2], crops, 32), make_sample(again, crops, 32), strict=True):
        assert np.array_equal(first, second)
    low_res, high_res = make_sample(records[2], crops, 32)
    assert low_res.shape == (8, 8, 3) and high_res.shape == (32, 32, 3)
    assert np.array_equal(low_res, np.round(low_res * 255).astype(np.float32) / 255)


def test_the_mix_is_what_it_says(pack):
    crops = load_pack(pack)[0]
    mix = Mix(bicubic=1, bsr_light=0, bsr=0, bsr_plus=0, augmented=0.5, largest_aug_level=0.2)
    records = [draw_record((0, e, i), crops, 32, mix) for e in range(40) for i in range(5)]
    assert {r.plan["preset"] for r in records} == {"bicubic"}
    levels = np.array([r.aug_level for r in records])
    assert 0.35 < (levels > 0).mean() < 0.65 and levels.max() <= 0.2


def test_an_interrupted_training_equals_an_uninterrupted_one(pack, tmp_path, tiny):
    config = TrainConfig(pack, tmp_path / "whole", crop_size=32, loop=LOOP)
    train(config)
    broken = replace(config, out=tmp_path / "broken")
    interrupt = broken.loop.steps // 2
    calls = 0

    real = sr3.train.losses

    def failing(*arguments):
        nonlocal calls
        calls += 1
        if calls > interrupt + 1:
            raise KeyboardInterrupt
        return real(*arguments)

    sr3.train.losses = failing
    try:
        with pytest.raises(KeyboardInterrupt):
            train(replace(broken, loop=replace(LOOP, save_every=interrupt)))
    finally:
        sr3.train.losses = real
    train(broken)
    whole, resumed = (load_file(tmp_path / name / "state.safetensors") for name in ("whole", "broken"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_a_mix_that_cannot_be_drawn_is_refused():
    for changes, message in (
        ({"bsr": -0.1}, "mix.bsr is -0.1; it must be 0 or more"),
        ({"bicubic": float("nan")}, "mix.bicubic is nan"),
        ({"bsr_plus": float("inf")}, "mix.bsr-plus is inf"),
        ({"bicubic": 0, "bsr_light": 0, "bsr": 0}, "one of mix.bicubic, bsr-light, bsr, bsr-plus must be more than 0"),
        ({"augmented": 1.5}, "mix.augmented is 1.5; it must be from 0 to 1"),
        ({"largest_aug_level": 1.0}, "mix.largest_aug_level is 1.0; it must be 0 or more and less than 1"),
    ):
        with pytest.raises(ValueError, match=message):
            Mix(**changes)


@pytest.mark.parametrize(
    "crops",
    [
        np.zeros((4, 48, 48, 3), np.float32),
        np.zeros((4, 3, 48, 48), np.uint8),
        np.zeros((4, 48, 48), np.uint8),
        np.zeros((0, 48, 48, 3), np.uint8),
    ],
)
def test_packs_by_others_are_read_and_checked(crops, tmp_path):
    save_file({"crops": crops}, tmp_path / "wrong")
    with pytest.raises(ValueError, match=r"wrong has crops of .* they must be uint8 \(N, S, S, 3\)"):
        load_pack(tmp_path / "wrong")
    save_file({"crops": np.full((2, 48, 48, 3), 7, np.uint8)}, tmp_path / "plain")
    found, manifest = load_pack(tmp_path / "plain")
    assert (found == 7).all() and manifest == []


def test_weights_of_another_kind_than_the_preset_are_refused(pack, tmp_path):
    for preset, other, given in (
        ("bundled", "sr3-paper-tiny", "sr3-paper or sr3-paper-tiny"),
        ("sr3-paper-tiny", "bundled", "bundled"),
    ):
        build(sr3.train.PRESETS[other]).save_pretrained(tmp_path / other)
        config = TrainConfig(pack, tmp_path / "out", preset, tmp_path / other, crop_size=32, loop=LOOP)
        with pytest.raises(ValueError, match=f"{other} is not of the preset {preset}; give --preset {given}"):
            train(config)
    assert not (tmp_path / "out").exists()
    tiny = TrainConfig(pack, tmp_path / "out", "sr3-paper", tmp_path / "sr3-paper-tiny", crop_size=32)
    trained = train(replace(tiny, loop=replace(LOOP, steps=1)))
    assert trained.unet.config.base_channels == 16  # the sizes are those of the weights


def test_minutes_end_a_training_in_a_resumable_state(pack, tmp_path, tiny):
    config = TrainConfig(pack, tmp_path / "out", crop_size=32, loop=replace(LOOP, minutes=1e-9))
    train(config)
    assert (tmp_path / "out" / "state.safetensors").is_file()
    assert (tmp_path / "out" / "pipeline" / "model_index.json").is_file()


def test_a_tiny_network_overfits_one_pair(tmp_path):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    high_res = torch.from_numpy(rng.uniform(-1, 1, (1, 3, 8, 8)).astype(np.float32))
    high_res = torch.nn.functional.interpolate(high_res, 32, mode="bilinear").clamp(-1, 1)
    batch = (torch.nn.functional.avg_pool2d(high_res, 4), high_res, torch.zeros(1))
    pipeline = build(SMALL)
    model = Cascade(pipeline.encoder, pipeline.unet)
    draw_gamma = partial(sample_gamma, cosine_gamma(torch.linspace(0, 1, 101)))
    first: dict[str, float] = {}

    def loss(run, step, rows):
        terms = losses(run, batch, generator(0, step), draw_gamma, False)
        if not first:
            first.update({k: float(v.detach()) for k, v in terms.items()})
        return terms["total"], {}

    loop = LoopConfig(steps=250, warmup=10, learning_rate=3e-3, device="cpu", save_every=999)
    fit(model, loss, TrainConfig(tmp_path, tmp_path, loop=loop), lambda _: {})
    with torch.no_grad():
        last = {k: float(v) for k, v in losses(model, batch, generator(1), draw_gamma, False).items()}
    assert last["mean"] < 0.35 * first["mean"]
    assert last["scale"] < first["scale"]
    assert last["denoising"] < first["denoising"]


def test_the_papers_preset_trains_through_the_same_trainer(pack, tmp_path):
    config = TrainConfig(pack, tmp_path, preset="sr3-paper-tiny", crop_size=32, loop=replace(LOOP, steps=3))
    pipeline = train(config)
    assert pipeline.scheduler.config.prediction_type == "epsilon"
    assert pipeline.scheduler.config.num_train_timesteps == 2000


def test_training_starts_from_given_weights(pack, tmp_path, tiny, small_pipeline):
    small_pipeline.save_pretrained(tmp_path / "init")
    loop = replace(LOOP, steps=1, learning_rate=0.0)
    config = TrainConfig(pack, tmp_path / "out", init=tmp_path / "init", crop_size=32, loop=loop)
    trained = train(config)
    weights, before = trained.unet.state_dict(), small_pipeline.unet.state_dict()
    assert all(torch.allclose(weights[k], before[k].half().float(), atol=1e-6) for k in before)


@pytest.mark.parametrize(
    ("phase", "learns", "stays"), [("encoder", "encoder", "unet"), ("few-steps", "unet", "encoder")]
)
@pytest.mark.parametrize("mean_loss", ["l1", "psnr", "psnr-ssim"])
def test_a_phase_trains_one_network_and_leaves_the_other(
    pack, tmp_path, tiny, small_pipeline, phase, learns, stays, mean_loss
):
    small_pipeline.save_pretrained(tmp_path / "init")
    loop = replace(LOOP, steps=4, save_every=2, learning_rate=0.02)
    config = TrainConfig(pack, tmp_path / "out", init=tmp_path / "init", crop_size=32, loop=loop)
    config = replace(config, phase=phase, mean_loss=mean_loss)
    trained = train(config)
    before, after = (getattr(p, stays).state_dict() for p in (small_pipeline, trained))
    assert all(torch.allclose(before[k], after[k], atol=2e-3) for k in before)  # as 16 bits hold them
    before, after = (getattr(p, learns).state_dict() for p in (small_pipeline, trained))
    assert any(not torch.allclose(before[k], after[k], atol=2e-3) for k in before)
    train(replace(config, out=tmp_path / "broken", loop=replace(loop, minutes=1e-9)))
    train(replace(config, out=tmp_path / "broken"))
    whole, resumed = (load_file(tmp_path / name / "state.safetensors") for name in ("out", "broken"))
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"phase": "last"}, "phase is 'last'; it must be all, encoder or few-steps"),
        ({"init": None}, "needs --init"),
        ({"preset": "sr3-paper"}, "few-steps is not for the paper's"),
        ({"preset": "sr3-paper", "phase": "encoder"}, "encoder is not for the paper's"),
        ({"preset": "sr3-large"}, "preset is 'sr3-large'"),
        ({"few_steps": (0,)}, "numbers from 1 up"),
        ({"mean_loss": "l2"}, "mean_loss is 'l2'; it must be l1, psnr or psnr-ssim"),
        ({"crop_size": 100}, "crop_size is 100; it must be a multiple of 32"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes, message):
    config = TrainConfig(Path("none"), Path("none"), init=Path("none"), phase="few-steps")
    with pytest.raises(ValueError, match=message):
        train(replace(config, **changes))


def test_folders_are_read_and_bad_files_named(tmp_path, tiny, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 240, 3), np.uint8)).save(folder / "a.png")
    (folder / "bad.png").write_bytes(b"x")
    config = TrainConfig(folder, tmp_path / "out", crop_size=32, loop=replace(LOOP, steps=1))
    with pytest.raises(ValueError, match="1 files could not be read; --skip-bad"):
        train(config)
    assert "bad.png" in capsys.readouterr().err
    train(replace(config, skip_bad=True))
    (folder / "below").mkdir()
    (folder / "a.png").rename(folder / "below" / "a.png")
    longer = replace(config, skip_bad=True, loop=replace(LOOP, steps=2))
    train(longer)  # goes on: the same picture
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (200, 240, 3), np.uint8)).save(folder / "a.png")
    with pytest.raises(ValueError, match=r"of a training on other data \(changed: a\.png\); give another folder"):
        train(longer)
    (folder / "a.png").rename(folder / "b.png")
    with pytest.raises(ValueError, match=r"of a training on other data \(new: b\.png\); give another folder"):
        train(longer)


def test_nothing_is_held_out_that_is_written_nowhere(tmp_path, tiny):
    folder = tmp_path / "pictures"
    folder.mkdir()
    seeds = iter(range(1000))
    while True:
        pixels = np.random.default_rng(next(seeds)).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "a.png")
        if is_held_out(hashlib.sha256((folder / "a.png").read_bytes()).hexdigest(), "drawing"):
            break
    config = CorpusConfig(tmp_path / "p", (folder,), (), crops=2, size=64)
    assert corpus_main(config) == 0
    crops, (line,) = load_pack(tmp_path / "p")
    assert len(crops) == line["crops"] > 0 and line["held_out"] is False
    train(TrainConfig(folder, tmp_path / "out", crop_size=32, loop=replace(LOOP, steps=1)))
    crops, (line,), _ = collect(replace(config, held_out=tmp_path / "kept"))
    assert not crops and line.held_out and len(list((tmp_path / "kept").rglob("*.png"))) == 1


def test_a_folder_without_pictures_is_one_line_and_exit_code_2(tmp_path):
    (tmp_path / "empty").mkdir()
    command = [sys.executable, "-m", "sr3.train", "--data", tmp_path / "empty", "--out", tmp_path / "out"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "holds no pictures" in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_a_configuration_file_needs_no_command_line_library(pack, tmp_path):
    values = {"data": str(pack), "out": str(tmp_path), "crop_size": 32, "mix": {"bsr": 0.5}, "loop": {"steps": 7}}
    (tmp_path / "c.json").write_text(json.dumps(values))
    config = from_json(tmp_path / "c.json", train=TrainConfig)
    assert config.loop.steps == 7 and config.mix.bsr == 0.5 and config.data == pack
    (tmp_path / "c.json").write_text(json.dumps({**values, "nonsense": 1}))
    with pytest.raises(ValueError, match=r"c\.json is no configuration.*nonsense"):
        from_json(tmp_path / "c.json", train=TrainConfig)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_size": "128"}, "crop_size is '128'; it must be of type int"),
        ({"crop_size": True}, "crop_size is True"),
        ({"few_steps": [1, "2"]}, "few_steps is .*tuple"),
        ({"loop": {"minutes": "5"}}, "minutes is '5'; it must be of type float"),
        ({"mix": {"bsr": None}}, "bsr"),
        ({"mix": 3}, "mix is 3; it must hold settings by name"),
    ],
)
def test_values_of_another_type_in_a_configuration_file_are_named(changes, message, pack, tmp_path):
    values = {"data": str(pack), "out": str(tmp_path), "few_steps": [1, 2], "loop": {"minutes": 5, "learning_rate": 1}}
    (tmp_path / "c.json").write_text(json.dumps(values))
    assert from_json(tmp_path / "c.json", train=TrainConfig).few_steps == (1, 2)
    (tmp_path / "c.json").write_text(json.dumps({**values, **changes}))
    with pytest.raises(ValueError, match=message):
        from_json(tmp_path / "c.json", train=TrainConfig)


def test_the_state_of_another_training_is_refused(pack, tmp_path, tiny):
    config = TrainConfig(pack, tmp_path / "out", crop_size=32, loop=replace(LOOP, steps=1))
    train(config)
    before = (tmp_path / "out" / "state.safetensors").read_bytes()
    for changes, message in (
        ({"phase": "encoder"}, "of a training with phase 'all', not 'encoder'"),
        ({"mix": Mix(1, 0, 0, 0, 0)}, "of a training with mix"),
        ({"seed": 1}, "of a training with seed 0, not 1"),
        ({"preset": "sr3-paper-tiny"}, "of a training with preset 'bundled', not 'sr3-paper-tiny'"),
    ):
        with pytest.raises(ValueError, match=rf"state\.safetensors is {message}"):
            train(replace(config, **changes))
    assert (tmp_path / "out" / "state.safetensors").read_bytes() == before
    elsewhere = tmp_path / "elsewhere" / pack.name
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(pack.read_bytes())
    train(replace(config, data=elsewhere, workers=2, loop=replace(LOOP, steps=2)))  # goes on
    save_pack(elsewhere, np.zeros((5, 48, 48, 3), np.uint8), [{"file": "other"}])
    with pytest.raises(ValueError, match=r"a training on other data \(changed: crops.safetensors\)"):
        train(replace(config, data=elsewhere, loop=replace(LOOP, steps=3)))
    (tmp_path / "out" / "state.safetensors").write_bytes(before[:1000])
    with pytest.raises(ValueError, match=r"state\.safetensors is no state of a training"):
        train(config)


def test_another_pipeline_of_the_same_name_is_no_base_to_go_on_from(pack, tmp_path, tiny, small_pipeline):
    small_pipeline.save_pretrained(tmp_path / "a" / "pipeline")
    build(SMALL).save_pretrained(tmp_path / "b" / "pipeline")
    loop = replace(LOOP, steps=1)
    config = TrainConfig(pack, tmp_path / "out", init=tmp_path / "a" / "pipeline", crop_size=32, loop=loop)
    train(config)
    with pytest.raises(ValueError, match=r"a training on other data \(changed: weights of --init\)"):
        train(replace(config, init=tmp_path / "b" / "pipeline"))
    (tmp_path / "a").rename(tmp_path / "c")
    train(replace(config, init=tmp_path / "c" / "pipeline", loop=replace(loop, steps=2)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "none.json"], "No such file"),
        (["--config", "broken.json"], "broken.json is no configuration"),
        (["--data", "none.safetensors", "--out", "out"], "No such file"),
        (["--data", "PACK", "--out", "out"], "has crops of 48 pixels; crop_size is 128"),
        (["--data", "PACK", "--out", "broken.json", "--crop-size", "32"], "File exists"),
        (["--data", "PACK", "--out", "out", "--crop-size", "32", "--init", "a/typo"], "a/typo is not an SR3 pipeline"),
        (["--data", "PACK", "--out", "out", "--crop-size", "32", "--loop.batch-size", "0"], "batch_size is 0"),
        (["--data", "PACK", "--out", "out", "--crop-size", "32", "--loop.device", "tpu"], "device is 'tpu'"),
        (["--data", "PACK", "--out", "out", "--crop-size", "32", "--loop.minutes", "0"], "loop.minutes is 0"),
        (["--data", "PACK", "--out", "out", "--mix.largest-aug-level", "3"], "mix.largest_aug_level is 3.0"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments, message, pack, tmp_path, tiny, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("broken.json").write_text("{")
    small = [] if "--crop-size" not in arguments else ["--loop.steps", "1"]
    monkeypatch.setattr(sys, "argv", ["train", *(str(pack) if a == "PACK" else a for a in arguments), *small])
    assert sr3.train.main() == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1 and error.startswith("sr3.train: ") and message in error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "out of memory; a smaller --loop.batch-size takes less"),
        (SafetensorError("I/O error: No space left on device"), "I/O error: No space left on device"),
    ],
)
def test_what_ends_a_training_is_one_line_and_exit_code_2(error, message, monkeypatch, capsys):
    def failing(config):
        raise error

    monkeypatch.setattr(sr3.train, "train", failing)
    monkeypatch.setattr(sys, "argv", ["train", "--data", "d", "--out", "o"])
    assert sr3.train.main() == 2
    assert capsys.readouterr().err == f"sr3.train: {message}\n"


def test_batches_do_not_depend_on_how_they_are_shared(pack):
    config = TrainConfig(pack, Path("unused"), crop_size=32, loop=replace(LOOP, batch_size=4))
    crops = load_pack(pack)[0]
    whole = make_batch(config, crops, 3, slice(0, 4))
    halves = [make_batch(config, crops, 3, rows) for rows in (slice(0, 2), slice(2, 4))]
    for tensor, *parts in zip(whole, *halves, strict=True):
        assert torch.equal(tensor, torch.cat(parts))


def test_what_is_drawn_does_not_depend_on_how_a_step_is_shared():
    batch = (torch.zeros(4, 3, 8, 8), torch.zeros(4, 3, 32, 32), torch.full((4,), 0.1))
    draw_gamma = partial(sample_gamma, cosine_gamma(torch.linspace(0, 1, 101)))

    def drawn(rows: slice) -> list[torch.Tensor]:
        seen: list[torch.Tensor] = []

        def model(low_res, high_res, level, gamma, noise):
            seen.extend((low_res, gamma, noise))
            return high_res, torch.zeros(len(high_res), 1, 8, 8), torch.zeros_like(noise), noise

        losses(model, tuple(t[rows] for t in batch), generator(0), draw_gamma, False, of=4, rows=rows)
        return seen

    halves = zip(drawn(slice(0, 2)), drawn(slice(2, 4)), strict=True)
    for whole, (first, second) in zip(drawn(slice(0, 4)), halves, strict=True):
        assert torch.equal(whole, torch.cat([first, second])) and not torch.equal(first, second)


def test_the_bundled_preset_samples_as_the_bundled_weights_do():
    assert build(PRESETS["bundled"]).sampling() == load(None, "cpu", "float32").sampling()


def test_learning_rate_rises_then_falls_to_nothing():
    config = LoopConfig(steps=100, warmup=10, learning_rate=1.0)
    rates = [learning_rate(s, config) for s in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[10] == 1.0 and rates[100] == pytest.approx(0, abs=1e-9)
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True)


def test_each_noise_level_counts_in_units_of_its_own_variance():
    def off_by_one(low_res, high_res, level, gamma, noise):
        return torch.zeros_like(high_res), torch.zeros(3, 1, 8, 8), torch.zeros_like(noise), torch.ones_like(noise)

    batch = torch.zeros(3, 3, 8, 8), torch.zeros(3, 3, 32, 32), torch.zeros(3)
    terms = losses(off_by_one, batch, generator(0), lambda draw, count: torch.tensor([0.5, 0.9, 1.0]), False)
    assert float(terms["denoising"]) == pytest.approx((2 + 10 + 100) / 3, rel=1e-4)
