"""Previews: the least-squares map where the answer is known, the bundled model's against its decoder, the fall-back."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FluxPipeline

import ldm
from ldm.captions import Drawing
from ldm.data import save_pack
from ldm.loading import own_guidance
from ldm.models import save
from ldm.preview import FILE, PreviewConfig, encode, fit_map, fit_plain, latent_map, main, preview, unpack
from ldm.schedulers import with_scheduler


@pytest.fixture(scope="module")
def pipeline():
    return ldm.load(device="cpu")


def test_least_squares_finds_the_map_that_made_the_images():
    draw = torch.Generator().manual_seed(0)
    latents = torch.randn(4, 5, 6, 6, generator=draw)
    weight, bias = torch.randn(12, 5, 3, 3, generator=draw), torch.randn(12, generator=draw)
    images = F.pixel_shuffle(F.conv2d(F.pad(latents, (1,) * 4, mode="replicate"), weight, bias), 2)
    found = fit_map(latents, images, ridge=1e-9)
    assert torch.allclose(found.weight, weight, atol=1e-4) and torch.allclose(found.bias, bias, atol=1e-4)
    assert torch.allclose(found(latents), images, atol=1e-3)


def test_the_bundled_previews_come_closer_to_the_picture_with_each_step(pipeline):
    seen = []

    def tell(pipeline, step, timestep, values):
        seen.append(preview(pipeline, values["latents"])[0])
        return values

    own = with_scheduler(pipeline, None)
    options = {"num_inference_steps": 8, "guidance_scale": 4.0, "generator": torch.Generator().manual_seed(1)}
    final = own("a red apple", **options, output_type="np", callback_on_step_end=tell).images[0] * 255
    assert len(seen) == 8 and seen[0].dtype == np.uint8 and seen[0].shape == final.shape
    apart = [float(np.sqrt(((p.astype(float) - final) ** 2).mean())) for p in seen]
    assert apart[-1] < 35 and apart[-1] < apart[0]
    channels = pipeline.vae.config.latent_channels
    noise = preview(pipeline, torch.randn(1, channels, 8, 8, generator=torch.Generator().manual_seed(0)))
    rough = [np.abs(np.diff(each.astype(float), axis=0)).mean() for each in (seen[0], noise[0])]
    assert rough[0] < rough[1]


def test_a_map_can_be_fitted_to_any_autoencoder(pipeline):
    """Without its file the bundled model gets the fall-back, which sees plain colours."""
    plain = fit_plain(pipeline.vae)
    assert plain.weight.shape == (3, pipeline.vae.config.latent_channels, 1, 1)
    red = torch.tensor([0.9, -0.8, -0.8]).view(1, 3, 1, 1).expand(1, 3, 64, 64)
    shown = plain(encode(pipeline.vae, red)).mean((0, 2, 3))
    assert shown[0] > 0.3 and shown[1] < -0.2 and shown[2] < -0.2


def test_the_map_is_kept_with_its_autoencoder_and_of_the_right_width(pipeline):
    assert latent_map(pipeline) is latent_map(with_scheduler(pipeline, "DDIM"))
    other = with_scheduler(pipeline, None)
    torch.manual_seed(0)
    other.vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        latent_channels=4,
    )
    assert latent_map(other).weight.shape == (3, 4, 1, 1)
    assert preview(other, torch.zeros(2, 4, 8, 8)).shape == (2, 8, 8, 3)


def test_packed_latents_are_unpacked_to_their_size():
    class Packed:
        vae_scale_factor = 8
        _unpack_latents = staticmethod(FluxPipeline._unpack_latents)

    latents = torch.randn(1, 4, 6, 10)
    packed = FluxPipeline._pack_latents(latents, 1, 4, 6, 10)
    assert torch.equal(unpack(Packed(), packed, (48, 80)), latents)
    square = torch.randn(1, 4, 6, 6)
    assert torch.equal(unpack(Packed(), FluxPipeline._pack_latents(square, 1, 4, 6, 6), None), square)


def test_the_command_writes_the_map_beside_the_weights(pipeline, tmp_path, capsys):
    save(pipeline, tmp_path / "model")
    pictures = np.random.default_rng(0).integers(0, 256, (220, 64, 64, 4), np.uint8)
    save_pack(tmp_path / "pack", pictures, [Drawing("apple", "noto")] * 220, [])
    assert main(PreviewConfig(tmp_path / "pack", tmp_path / "model", drawings=20)) == 0
    assert (tmp_path / "model" / FILE).is_file() and "dB" in capsys.readouterr().out
    assert own_guidance(ldm.load(tmp_path / "model", "cpu")) == 4.0
    channels = pipeline.vae.config.latent_channels
    assert latent_map(ldm.load(tmp_path / "model", "cpu")).weight.shape == (192, channels, 3, 3)
    (tmp_path / "plain").touch()
    assert (tmp_path / "model" / FILE).stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "model" / FILE).unlink()
    (tmp_path / "model" / FILE).mkdir()  # no file can be written there
    assert main(PreviewConfig(tmp_path / "pack", tmp_path / "model", drawings=20)) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("ldm.preview: ")
    assert main(PreviewConfig(tmp_path / "none", tmp_path / "model")) == 2
    assert "none" in capsys.readouterr().err
    save_pack(tmp_path / "few", pictures[:200], [Drawing("apple", "noto")] * 200, [])
    assert main(PreviewConfig(tmp_path / "few", tmp_path / "model")) == 2
    assert "200 drawings, without the 200 that measure it: too few" in capsys.readouterr().err
