"""Both stages: the mathematics, exact resume, the result as an ordinary pipeline, errors."""

import json
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

import ldm
import ldm.autoencoder
import ldm.diffusion
from degradation.arguments import from_json
from ldm.autoencoder import Autoencoding, gradients, lower_bound, noise_levels, psnr
from ldm.captions import Drawing
from ldm.data import load_pack, save_pack
from ldm.diffusion import shifted_timesteps, velocity
from ldm.loading import ModelError, load
from ldm.models import TEXT_LENGTH, TEXT_WIDTH, build_autoencoder, grow_autoencoder, grow_unet, train_tokenizer
from ldm.train import STAGES, AutoencoderConfig, ClassifierConfig, DiffusionConfig, FinetuneConfig, main
from sr3.loop import LoopConfig

LOOP = LoopConfig(steps=4, batch_size=4, warmup=1, device="cpu", save_every=2, log_every=1)


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pack") / "drawings.safetensors"
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (6, 32, 32, 4), np.uint8)
    names = ("apple", "pear", "cat", "dog", "sun", "car")
    records = [Drawing(n, "noto", label_zh="苹果", everyday=True, held_out=n == "car") for n in names]
    save_pack(path, pictures, records, [])
    return path


@pytest.fixture(scope="module")
def stages(pack, tmp_path_factory) -> tuple[Path, Path]:
    """Both stages, trained for a few steps."""
    out = tmp_path_factory.mktemp("out")
    main(AutoencoderConfig(pack, out / "ae", latent_channels=4, loop=LOOP))
    main(DiffusionConfig(pack, out / "diffusion", out / "ae" / "vae", variants=2, loop=LOOP))
    return out / "ae", out / "diffusion"


def test_lower_bound_terms_have_known_values():
    target = torch.zeros(2, 3, 4, 4)
    terms = lower_bound(target, target + 0.1, torch.zeros(2, 5), torch.zeros(2, 5))
    assert terms["kl"] == 0
    assert terms["absolute_error"] == pytest.approx(0.1)
    # -log of a Laplace density of scale 0.1 at 0.1, per number, on levels 2/255 apart
    assert terms["reconstruction"] == pytest.approx(48 * (1 + np.log(0.2) - np.log(2 / 255)), rel=1e-4)
    one = lower_bound(target, target + 0.1, torch.ones(2, 5), torch.zeros(2, 5))
    assert one["kl"] == pytest.approx(2.5)  # ½ μ² for each of five latents


def test_velocity_and_its_inverse():
    sample, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    gamma = torch.tensor([0.8, 0.3]).view(-1, 1, 1, 1)
    noisy = gamma.sqrt() * sample + (1 - gamma).sqrt() * noise
    # x₀ = √γ x_t − √(1−γ) v (Salimans and Ho, section 4)
    assert torch.allclose(gamma.sqrt() * noisy - (1 - gamma).sqrt() * velocity(sample, noise, gamma), sample, atol=1e-5)


def test_shifted_timesteps_lean_towards_noise():
    uniform = torch.tensor([0.0, 0.25, 0.5, 0.9999])
    assert shifted_timesteps(uniform, 1.0, 1000).tolist() == [0, 250, 500, 999]
    assert shifted_timesteps(uniform, 3.0, 1000).tolist() == [0, 500, 750, 999]


@pytest.mark.parametrize("shift", [1.0, 2.0, 2.5, 3.0, 4.0])
def test_no_uniform_number_is_noisier_than_the_last_timestep(shift):
    uniform = 1 - 2**-24 * torch.arange(1, 9)  # the largest that torch.rand draws; the quotient rounds up to 1 for some
    assert uniform.max() < 1 and shifted_timesteps(uniform, shift, 1000).tolist() == [999] * 8


def test_edges_and_psnr():
    step = torch.zeros(1, 3, 4, 4)
    step[..., 2:] = 1
    assert gradients(step).abs().sum() == 12
    assert psnr(torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.2)) == pytest.approx(20)


def test_noise_levels_leave_a_quarter_alone_and_reach_the_largest():
    levels = noise_levels(4000, 0.4, torch.Generator().manual_seed(0)).flatten()
    assert float((levels == 0).float().mean()) == pytest.approx(0.25, abs=0.03)
    assert 0.39 < levels.max() <= 0.4
    assert levels[levels > 0].mean() == pytest.approx(0.2, abs=0.01)
    assert not noise_levels(8, 0.0, torch.Generator()).any()


def test_latents_get_the_least_noise_where_the_posterior_has_less():
    torch.manual_seed(0)
    model = Autoencoding(build_autoencoder(32, 4), std=2.0).eval()
    decoded: list[torch.Tensor] = []
    model.autoencoder.decode = lambda latents: (
        decoded.append(latents) or AutoencoderKL.decode(model.autoencoder, latents)
    )
    images, noise = torch.zeros(1, 3, 32, 32), torch.ones(1, 4, 4, 4)
    with torch.no_grad():
        _, mean, log_variance = model(images, noise, torch.zeros(1, 1, 1, 1))
        model(images, noise, torch.full((1, 1, 1, 1), 9.0))
        model.std = None
        model(images, noise, torch.full((1, 1, 1, 1), 9.0))
    assert torch.allclose(decoded[0], mean + (0.5 * log_variance).exp())
    assert torch.allclose(decoded[1], mean + 18)
    assert torch.allclose(decoded[2], mean + 9 * mean.std(correction=0))


def test_any_language_goes_through_the_tokenizer():
    tokenizer = train_tokenizer(["a red apple", "a green pear", "红苹果"], vocabulary=300)
    for text in ("a red apple", "ein Äpfelchen", "苹果🍎", "ありがとう"):
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text
    padded = tokenizer(["a" * 500, ""], padding="max_length", truncation=True).input_ids
    assert [len(ids) for ids in padded] == [TEXT_LENGTH, TEXT_LENGTH]


def test_the_result_is_an_ordinary_stable_diffusion_pipeline(stages):
    folder = stages[1] / "pipeline"
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"
    pipeline = ldm.load(folder, "cpu")
    assert isinstance(pipeline, StableDiffusionPipeline)
    draw = [torch.Generator().manual_seed(s) for s in (1, 1, 2)]
    images = pipeline(["an apple"] * 3, num_inference_steps=2, generator=draw, output_type="np").images
    assert images.shape == (3, 32, 32, 3)
    assert np.allclose(images[0], images[1], atol=1e-4) and not np.allclose(images[0], images[2], atol=1e-2)


def test_results_are_open_to_whom_the_umask_lets_in(stages, tmp_path):
    (tmp_path / "plain").touch()
    files = [file for out in stages for file in out.rglob("*.safetensors")]
    assert len(files) >= 6 and {file.stat().st_mode for file in files} == {(tmp_path / "plain").stat().st_mode}


def test_latents_have_unit_scale(stages):
    config = json.loads((stages[0] / "vae" / "config.json").read_text())
    assert config["scaling_factor"] != 0.18215 and config["scaling_factor"] > 0


def test_decoder_only_leaves_the_encoder_and_its_latents_as_they_are(pack, stages, tmp_path):
    vae = stages[0] / "vae"
    with pytest.raises(ValueError, match="give init"):
        main(AutoencoderConfig(pack, tmp_path, decoder_only=True, loop=LOOP))
    main(AutoencoderConfig(pack, tmp_path, init=vae, decoder_only=True, loop=LOOP))
    before, after = (AutoencoderKL.from_pretrained(f).state_dict() for f in (vae, tmp_path / "vae"))
    kept = [k for k in before if k.startswith(("encoder.", "quant_conv."))]
    assert kept and all(torch.equal(before[k], after[k]) for k in kept)
    trained = [k for k in before if k.startswith("decoder.") and not torch.equal(before[k], after[k])]
    assert len(trained) > 0.9 * len([k for k in before if k.startswith("decoder.")])
    scales = [json.loads((f / "config.json").read_text())["scaling_factor"] for f in (vae, tmp_path / "vae")]
    assert scales[0] == scales[1]


def interrupted(module, monkeypatch, config) -> None:
    """Train until just after the first save, then fail; then train to the end."""
    real, calls = module.generator, []

    def failing(*key):
        calls.append(key)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return real(*key)

    with monkeypatch.context() as patch:
        patch.setattr(module, "generator", failing)
        with pytest.raises(KeyboardInterrupt):
            main(config)
    main(config)


def equal(first: Path, second: Path) -> bool:
    a, b = load_file(first / "state.safetensors"), load_file(second / "state.safetensors")
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_an_interrupted_autoencoder_equals_an_uninterrupted_one(pack, stages, tmp_path, monkeypatch):
    interrupted(ldm.autoencoder, monkeypatch, AutoencoderConfig(pack, tmp_path, latent_channels=4, loop=LOOP))
    assert equal(tmp_path, stages[0])


def test_noise_on_latents_does_not_depend_on_when_a_training_is_saved(pack, tmp_path, monkeypatch):
    config = AutoencoderConfig(pack, tmp_path / "whole", latent_channels=4, latent_noise=0.5, loop=LOOP)
    main(config)
    interrupted(ldm.autoencoder, monkeypatch, replace(config, out=tmp_path / "broken"))
    main(replace(config, out=tmp_path / "rare", loop=replace(LOOP, save_every=4)))
    assert equal(tmp_path / "broken", tmp_path / "whole") and equal(tmp_path / "rare", tmp_path / "whole")


def test_an_interrupted_diffusion_equals_an_uninterrupted_one(pack, stages, tmp_path, monkeypatch):
    config = DiffusionConfig(pack, tmp_path, stages[0] / "vae", variants=2, loop=LOOP)
    interrupted(ldm.diffusion, monkeypatch, config)
    assert equal(tmp_path, stages[1])


def test_no_stage_goes_on_with_another_pack_of_the_same_name(pack, stages, tmp_path):
    other = tmp_path / pack.name
    pictures, records, _ = load_pack(pack)
    save_pack(other, 255 - pictures, records, [])
    ae, diffusion = stages
    for config in (
        AutoencoderConfig(other, ae, latent_channels=4, loop=LOOP),
        DiffusionConfig(other, diffusion, ae / "vae", variants=2, loop=LOOP),
    ):
        with pytest.raises(ValueError, match=r"a training on other data \(changed: drawings.safetensors\)"):
            main(config)


def copied(folder: Path, to: Path, part: str = "") -> Path:
    """A copy of a folder, elsewhere under its name, in which the weights of a part are halved."""
    shutil.copytree(folder, to / folder.name)
    for file in (to / folder.name / part).glob("*.safetensors"):
        save_file({k: v / 2 for k, v in load_file(file).items()}, file, metadata={"format": "pt"})
    return to / folder.name


def test_no_stage_goes_on_from_another_base_of_the_same_name(pack, stages, tmp_path):
    vae, pipeline = stages[0] / "vae", stages[1] / "pipeline"
    moved, spoiled = copied(vae, tmp_path / "a", "none"), copied(vae, tmp_path / "b")
    redrawn = copied(pipeline, tmp_path / "c", "unet")
    loop = replace(LOOP, steps=1)
    grown = AutoencoderConfig(pack, tmp_path / "ae", init=vae, loop=loop)
    drawing = DiffusionConfig(pack, tmp_path / "diffusion", vae, init=pipeline, variants=1, loop=loop)
    for config in (grown, drawing):
        main(config)
    for config, option in (
        (replace(grown, init=spoiled), "init"),
        (replace(drawing, init=redrawn), "init"),
        (replace(drawing, autoencoder=spoiled), "autoencoder"),
    ):
        with pytest.raises(ValueError, match=rf"a training on other data \(changed: weights of --{option}\)"):
            main(config)
    main(replace(grown, init=moved, loop=replace(loop, steps=2)))
    main(replace(drawing, autoencoder=moved, loop=replace(loop, steps=2)))


def test_training_starts_from_given_weights(pack, stages, tmp_path):
    loop = replace(LOOP, steps=1, learning_rate=0.0)
    vae = stages[0] / "vae"
    main(DiffusionConfig(pack, tmp_path, vae, init=stages[1] / "pipeline", variants=1, loop=loop))
    before, after = (load(f / "pipeline", "cpu").unet.state_dict() for f in (stages[1], tmp_path))
    assert all(torch.allclose(before[k], after[k], atol=1e-6) for k in before)


def test_a_configuration_file_needs_no_command_line_library(tmp_path):
    values = {"stage": "diffusion", "pack": "p", "out": "o", "autoencoder": "v", "loop": {"steps": 3}}
    (tmp_path / "c.json").write_text(json.dumps(values))
    config = from_json(tmp_path / "c.json", **STAGES)
    assert isinstance(config, DiffusionConfig) and config.loop.steps == 3 and config.loop.batch_size == 128
    (tmp_path / "c.json").write_text(json.dumps({**values, "nonsense": 1}))
    with pytest.raises(ValueError, match=r"c\.json is no configuration.*nonsense"):
        from_json(tmp_path / "c.json", **STAGES)
    (tmp_path / "c.json").write_text(json.dumps({"stage": "finetune", "init": "m", "data": "d", "lora": 4}))
    config = from_json(tmp_path / "c.json", **STAGES)
    assert isinstance(config, FinetuneConfig) and (config.init, config.data, config.lora) == ("m", Path("d"), 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "c.json is no configuration"),
        ("[]", "c.json is no configuration"),
        ("{}", "stage is None; it must be one of autoencoder, diffusion, classifier, finetune"),
        ('{"stage": "diffusion", "pack": "p"}', "missing .* 'out' and 'autoencoder'"),
        ('{"stage": "diffusion", "variants": "3"}', "variants is '3'; it must be of type int"),
        ('{"stage": "diffusion", "loop": {"steps": 2.5}}', "steps is 2.5; it must be of type int"),
        ('{"stage": "diffusion", "loop": 3}', "loop is 3; it must hold settings by name"),
        ('{"stage": "diffusion", "pack": 3}', "pack is 3; it must be of type Path"),
    ],
)
def test_a_configuration_file_that_does_not_fit_says_where(text, message, tmp_path):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        from_json(tmp_path / "c.json", **STAGES)


@pytest.mark.parametrize(
    ("side", "changes", "message"),
    [
        (20, {}, r"has pictures of \(2, 20, 20, 4\) uint8; they must be uint8 \(N, S, S, 4\), S a multiple of 8"),
        (16, {}, "has no drawings that are held out, which measure the autoencoder"),
        (16, {"everyday_only": True}, "has no drawings of everyday names to train on"),
        (16, {"held_out": True}, "has no drawings to train on"),
    ],
)
def test_a_pack_that_cannot_be_trained_on_is_named(side, changes, message, tmp_path):
    records = [Drawing(name, "noto", held_out="held_out" in changes) for name in ("apple", "pear")]
    save_pack(tmp_path / "p", np.zeros((2, side, side, 4), np.uint8), records, [])
    everyday = {k: v for k, v in changes.items() if k == "everyday_only"}
    config = ClassifierConfig(tmp_path / "p", tmp_path / "out", **everyday, loop=LOOP)
    with pytest.raises(ValueError, match=f"p {message}"):
        main(config if changes else AutoencoderConfig(tmp_path / "p", tmp_path / "out", loop=LOOP))


def test_a_full_disk_is_one_line_and_exit_code_2(pack, tmp_path):
    """As one that ends after a megabyte."""
    full = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (2**20, 2**20))
    options = ["--pack", pack, "--out", tmp_path, "--loop.steps", "1", "--loop.batch-size", "2", "--loop.device", "cpu"]
    command = [sys.executable, "-m", "ldm.train", "classifier", *map(str, options)]
    root = Path(__file__).parent.parent
    failed = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=root, preexec_fn=full)
    assert failed.returncode == 2 and "Traceback" not in failed.stderr
    assert failed.stderr.splitlines()[-1].startswith("ldm.train: ") and "File too large" in failed.stderr


def test_an_autoencoder_that_is_not_there_is_named_and_asked_of_no_hub(pack, tmp_path):
    none = Path("nobody/nothing")
    for config in (
        AutoencoderConfig(pack, tmp_path, none, loop=LOOP),
        DiffusionConfig(pack, tmp_path, none, loop=LOOP),
    ):
        with pytest.raises(ValueError, match="nobody/nothing is no autoencoder"):
            main(config)


def test_wrong_models_are_named(stages, tmp_path, caplog):
    with pytest.raises(ModelError, match=r"no model_index\.json"):
        load(tmp_path)
    with pytest.raises(ModelError, match="does not exist"):
        load(tmp_path / "none")
    with pytest.raises(ModelError, match="must be one of auto, float32"):
        load(stages[1] / "pipeline", dtype="int8")
    spoiled = tmp_path / "spoiled"
    shutil.copytree(stages[1] / "pipeline", spoiled)
    (weights,) = (spoiled / "text_encoder").glob("*.safetensors")
    tensors = load_file(weights)
    save_file({k: v for k, v in tensors.items() if "final_layer_norm" not in k}, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="text_encoder lacks 2 tensors"):
        load(spoiled)
    weights.write_bytes(b"not weights")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(spoiled)
    with pytest.raises(ModelError, match="nobody/nothing is not in the hub's cache"):
        load("nobody/nothing")


@pytest.mark.filterwarnings("ignore:The config attributes")
def test_a_model_grown_by_latent_channels_draws_what_it_drew():
    pipeline = load(device="cpu")
    old, unet = pipeline.vae.float(), pipeline.unet.float()
    had = old.config.latent_channels
    grown = grow_autoencoder(old, had + 4)
    draw = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 64, 64, generator=draw) * 2 - 1
    text = torch.randn(1, TEXT_LENGTH, TEXT_WIDTH, generator=draw)
    with torch.no_grad():
        before, after = old.encode(image).latent_dist, grown.encode(image).latent_dist
        for found, wanted in ((after.mean, before.mean), (after.std, before.std)):
            assert torch.allclose(found[:, :had], wanted, atol=1e-4)
        assert after.std[:, had:].max() < 0.1
        assert torch.allclose(grown.decode(after.mean).sample, old.decode(before.mean).sample, atol=1e-4)
        wanted, found = (
            net(latents, 500, text, added_cond_kwargs={}).sample
            for net, latents in ((unet, before.mean), (grow_unet(unet, had + 4), after.mean))
        )
    assert torch.allclose(found[:, :had], wanted, atol=1e-4) and not found[:, had:].any()
    assert grown.config.scaling_factor == old.config.scaling_factor
    with pytest.raises(ValueError, match=f"init has {had}"):
        grow_autoencoder(old, had - 4)


def test_more_latent_channels_keep_those_that_were_there(pack, stages, tmp_path):
    vae = stages[0] / "vae"
    loop = replace(LOOP, steps=30, save_every=30, learning_rate=1e-3)
    main(AutoencoderConfig(pack, tmp_path / "ae", init=vae, latent_channels=6, loop=loop))
    grown = AutoencoderKL.from_pretrained(tmp_path / "ae" / "vae")
    assert grown.config.scaling_factor == AutoencoderKL.from_pretrained(vae).config.scaling_factor
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        held = AutoencoderKL.from_pretrained(vae).encode(image).latent_dist.mean
        found = grown.encode(image).latent_dist.mean[:, :4]
        assert F.mse_loss(found, held) < 0.3 * held.var()  # it would be about 3 if they were not held
    init = stages[1] / "pipeline"
    main(DiffusionConfig(pack, tmp_path / "diffusion", tmp_path / "ae" / "vae", init=init, variants=1, loop=LOOP))
    assert load(tmp_path / "diffusion" / "pipeline", "cpu").unet.config.out_channels == 6
