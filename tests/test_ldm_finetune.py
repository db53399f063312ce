"""Fine-tuning on a folder: the literal command, whole and by adapters, the result as diffusers reads it, errors."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import ldm
import ldm.finetune
from ldm.diffusion import denoising_loss, velocity
from ldm.finetune import encode_captions, encode_pictures
from ldm.folder import read_captioned
from ldm.loading import own_guidance
from ldm.preview import FILE
from ldm.train import FinetuneConfig, _from_arguments, main
from sr3.loop import LoopConfig, generator
from tests.ldm_families import build

LOOP = LoopConfig(steps=4, batch_size=2, warmup=1, learning_rate=1e-3, device="cpu", save_every=2, log_every=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three pictures: bars of red on white, of blue on grey, of green on black."""
    path = tmp_path_factory.mktemp("pictures")
    kinds = {
        "zorp": ((255, 255, 255), (220, 0, 0)),
        "flim": ((90, 90, 90), (0, 0, 230)),
        "gax": ((0, 0, 0), (0, 220, 0)),
    }
    for i, (name, (ground, colour)) in enumerate(kinds.items()):
        pixels = np.full((80, 96, 3), ground, np.uint8)
        pixels[30:50, 20 * i :] = colour
        Image.fromarray(pixels).save(path / f"{name}.png")
        (path / f"{name}.txt").write_text(f"a {name}")
    return path


def test_the_loss_of_a_perfect_network_is_zero_whatever_it_predicts():
    gammas, latents = torch.linspace(0.99, 0.05, 50), torch.randn(3, 4, 8, 8)
    for kind in ("epsilon", "v_prediction", "sample"):

        def perfect(noisy, timestep, kind=kind):
            gamma = gammas[timestep].view(-1, 1, 1, 1)
            noise = (noisy - gamma.sqrt() * latents) / (1 - gamma).sqrt()
            return {"epsilon": noise, "sample": latents, "v_prediction": velocity(latents, noise, gamma)}[kind]

        assert denoising_loss(perfect, latents, gammas, generator(0), 3, slice(0, 3), 1.0, kind)[0] < 1e-8
    halves = [
        denoising_loss(lambda n, t: n, latents[r], gammas, generator(0), 3, r, 1.0)[0]
        for r in (slice(0, 1), slice(1, 3))
    ]
    whole = denoising_loss(lambda n, t: n, latents, gammas, generator(0), 3, slice(0, 3), 1.0)[0]
    assert (halves[0] + 2 * halves[1]) / 3 == pytest.approx(float(whole), rel=1e-5)  # rows see the batch's own noise


def test_the_bundled_model_learns_a_new_thing(folder, tmp_path):
    """After a few steps on three pictures it draws them rather than what it drew before."""
    loop = replace(LOOP, steps=60, batch_size=6, save_every=100, ema=0.9)
    main(FinetuneConfig(str(ldm.BUNDLED), folder, tmp_path, loop=loop))
    assert (tmp_path / "pipeline" / FILE).is_file() and (tmp_path / "samples.png").is_file()
    assert own_guidance(ldm.load(tmp_path / "pipeline", "cpu")) == 4.0
    wanted = np.stack([np.asarray(c.open().resize((64, 64))) for c in read_captioned(folder)]).astype(float)
    names = [c.caption for c in read_captioned(folder)]

    def error(model: Path) -> float:
        draw = [torch.Generator().manual_seed(0) for _ in names]
        made = ldm.load(model, "cpu")(
            names, num_inference_steps=8, guidance_scale=1.5, generator=draw, output_type="np"
        )
        return float(np.abs(made.images * 255 - wanted).mean())

    assert error(tmp_path / "pipeline") < 0.7 * error(ldm.BUNDLED)


def test_adapters_are_loaded_by_diffusers(folder, tmp_path):
    main(FinetuneConfig(str(ldm.BUNDLED), folder, tmp_path, lora=4, loop=LOOP))
    saved = load_file(tmp_path / "lora" / "pytorch_lora_weights.safetensors")
    (tmp_path / "plain").touch()
    assert len({f.stat().st_mode for f in (tmp_path / "plain", *tmp_path.rglob("*.safetensors"))}) == 1
    assert all("lora" in k for k in saved) and sum(v.numel() for v in saved.values()) < 200_000
    assert any(v.abs().max() > 0 for k, v in saved.items() if "lora_B" in k or "lora.up" in k)
    pipeline = ldm.load(device="cpu")
    options = {"num_inference_steps": 2, "output_type": "np"}
    plain = pipeline("a zorp", generator=torch.Generator().manual_seed(0), **options).images
    pipeline.load_lora_weights(tmp_path / "lora")
    assert pipeline.get_active_adapters()
    adapted = pipeline("a zorp", generator=torch.Generator().manual_seed(0), **options).images
    assert np.abs(plain - adapted).max() > 1e-3
    pipeline.unload_lora_weights()
    again = pipeline("a zorp", generator=torch.Generator().manual_seed(0), **options).images
    assert np.allclose(plain, again, atol=1e-5)


@pytest.mark.parametrize("family", ["stable_diffusion", "stable_diffusion_xl"])
def test_other_families_train_and_an_interrupted_run_equals_another(family, folder, tmp_path, monkeypatch):
    build(family).save_pretrained(tmp_path / "model")
    config = FinetuneConfig(str(tmp_path / "model"), folder, tmp_path / "a", lora=2, flip=True, size=16, loop=LOOP)
    main(config)
    stopped = replace(config, out=tmp_path / "b")
    real, calls = ldm.finetune.generator, []

    def failing(*key):
        calls.append(key)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return real(*key)

    with monkeypatch.context() as patch:
        patch.setattr(ldm.finetune, "generator", failing)
        with pytest.raises(KeyboardInterrupt):
            main(stopped)
    main(stopped)
    first, second = (load_file(f / "state.safetensors") for f in (tmp_path / "a", tmp_path / "b"))
    assert all(torch.equal(first[k], second[k]) for k in first)
    pipeline = ldm.load(tmp_path / "model", "cpu")
    pipeline.load_lora_weights(tmp_path / "a" / "lora")
    assert pipeline.get_active_adapters()


def test_a_folder_that_changed_is_no_folder_to_go_on_with(folder, tmp_path):
    build("stable_diffusion").save_pretrained(tmp_path / "model")
    data, out, loop = tmp_path / "a" / "pictures", tmp_path / "out", replace(LOOP, steps=1)
    shutil.copytree(folder, data)
    config = FinetuneConfig(str(tmp_path / "model"), data, out, lora=2, size=16, loop=loop)
    main(config)
    state = (out / "state.safetensors").read_bytes()
    shutil.copy(data / "gax.png", data / "zzz.png")
    (data / "zzz.txt").write_text("a zzz")
    (data / "flim.txt").write_text("another flim")
    Image.new("RGB", (20, 20)).save(data / "gax.png")
    (data / "zorp.png").unlink()
    (data / "zorp.txt").unlink()
    with pytest.raises(ValueError, match=r"state\.safetensors is of a training on other data \(") as refused:
        main(replace(config, loop=replace(loop, steps=2)))
    assert "(new: zzz.png; gone: zorp.png; changed: flim.png, gax.png); give another folder" in str(refused.value)
    assert (out / "state.safetensors").read_bytes() == state
    shutil.copytree(folder, tmp_path / "b" / "pictures")
    main(replace(config, data=tmp_path / "b" / "pictures", loop=replace(loop, steps=2)))  # the same, elsewhere
    assert (out / "state.safetensors").read_bytes() != state


def test_another_model_of_the_same_name_is_no_base_to_go_on_from(folder, tmp_path):
    for name, seed in (("alice", 1), ("bob", 2)):
        model = build("stable_diffusion")
        torch.nn.init.constant_(model.unet.conv_in.bias, seed)
        model.save_pretrained(tmp_path / name / "sd")
    config = FinetuneConfig(str(tmp_path / "alice/sd"), folder, tmp_path / "out", lora=2, size=16, loop=LOOP)
    main(config)
    with pytest.raises(ValueError, match=r"a training on other data \(changed: weights of --init\); give another"):
        main(replace(config, init=str(tmp_path / "bob/sd")))
    (tmp_path / "alice").rename(tmp_path / "carol")
    main(replace(config, init=str(tmp_path / "carol/sd"), loop=replace(LOOP, steps=5)))


def test_sdxl_learns_for_no_caption_what_it_is_drawn_with(tmp_path):
    """Zeros where the model says so, as in the pipeline's own guidance."""
    pipeline = build("stable_diffusion_xl")
    for zeros in (True, False):
        pipeline.register_to_config(force_zeros_for_empty_prompt=zeros)
        empty, text = encode_captions(pipeline, ["", "a red apple"], torch.device("cpu"))
        drawn = pipeline.encode_prompt("a cat", num_images_per_prompt=1, do_classifier_free_guidance=True)
        assert torch.equal(empty[0], drawn[1][0]) and torch.equal(empty[1], drawn[3][0])
        assert any(part.any() for part in empty) != zeros and all(part.any() for part in text)


def test_pictures_are_squared_and_mirrored(folder):
    pipeline = ldm.load(device="cpu")
    found = read_captioned(folder)
    latents = encode_pictures(pipeline, found, 64, flip=True)
    assert latents.shape == (2, 3, pipeline.vae.config.latent_channels, 8, 8)
    assert not torch.allclose(latents[0, 1], latents[1, 1], atol=1e-3)


def test_the_literal_command(tmp_path):
    config = _from_arguments(["--init", "ldm/weights", "--data", "pictures", "--lora", "8", "--loop.steps", "2"])
    assert isinstance(config, FinetuneConfig) and (config.init, config.data, config.lora) == (
        "ldm/weights", Path("pictures"), 8
    )  # fmt: skip
    assert config.loop.steps == 2 and config.loop.learning_rate == FinetuneConfig("", Path()).loop.learning_rate
    command = [sys.executable, "-m", "ldm.train", "--init", "ldm/weights", "--data", str(tmp_path)]
    root = Path(__file__).parent.parent
    failed = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=root)
    assert failed.returncode == 2
    assert failed.stderr.strip().splitlines()[-1].startswith(f"ldm.train: {tmp_path} has no pictures")


def test_the_options_of_fine_tuning_come_in_any_order():
    wanted = _from_arguments(["--init", "m", "--data", "f", "--lora", "8", "--loop.steps", "2"])
    assert isinstance(wanted, FinetuneConfig)
    for line in (
        "--data f --init m --lora 8 --loop.steps 2", "--loop.steps=2 --lora 8 --data f --init m",
        "--lora 8 --init=m --loop.steps 2 --data=f", "finetune --data f --init m --lora 8 --loop.steps 2",
    ):  # fmt: skip
        assert _from_arguments(line.split()) == wanted
    for line, message in (
        ("--data f", "--init"),
        ("--lora 8", "--data"),
        ("fine --data f", "Available subcommands: autoencoder"),
        ("", "Expected one of"),
    ):
        with pytest.raises(ValueError, match=message):
            _from_arguments(line.split())


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_every_stage(flag, capsys):
    with pytest.raises(SystemExit):
        _from_arguments([flag])
    told = capsys.readouterr().out
    assert all(stage in told for stage in ("autoencoder", "diffusion", "classifier", "finetune"))


def test_a_missing_package_is_told_before_anything_is_loaded(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setattr(ldm.finetune, "load", None)
    with pytest.raises(ValueError, match=r"lora needs peft: pip install '\.\[train\]' \(.*peft"):
        main(FinetuneConfig(str(ldm.BUNDLED), folder, tmp_path / "out", lora=4, loop=LOOP))


def test_what_is_not_trained_here_is_named(folder, tmp_path):
    build("stable_diffusion_3").save_pretrained(tmp_path / "sd3")
    with pytest.raises(ValueError, match="StableDiffusion3Pipeline cannot be fine-tuned here"):
        main(FinetuneConfig(str(tmp_path / "sd3"), folder, tmp_path / "out", loop=LOOP))
    build("edm").save_pretrained(tmp_path / "edm")
    with pytest.raises(ValueError, match="noise is that of EDMDPMSolverMultistepScheduler, which is not trained here"):
        main(FinetuneConfig(str(tmp_path / "edm"), folder, tmp_path / "out", loop=LOOP))
    for rank in (0, -1):
        with pytest.raises(ValueError, match=f"lora is {rank}; it must be 1 or more"):
            main(FinetuneConfig(str(ldm.BUNDLED), folder, tmp_path / "out", lora=rank, loop=LOOP))
    with pytest.raises(ValueError, match="multiple of 8"):
        main(FinetuneConfig(str(ldm.BUNDLED), folder, tmp_path / "out", size=20, loop=LOOP))
