"""The networks: sizes, shapes, and that nothing in them looks across space but convolutions."""

import pytest
import torch

from sr3.images import VIEWS
from sr3.model import ChannelNorm, LowResEncoder, SR3UNet, estimate, turn, turn_back, upsample
from sr3.train import PRESETS, build


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_the_papers_64_to_256_preset_has_625_million_parameters():
    with torch.device("meta"):
        unet = build(PRESETS["sr3-paper"]).unet
    assert abs(parameters(unet) / 625e6 - 1) < 0.03


def test_shapes_of_the_bundled_preset():
    pipeline = build(PRESETS["bundled"])
    low_res = torch.rand(2, 3, 12, 20) * 2 - 1
    encoded = pipeline.encoder(low_res, torch.zeros(2))
    assert encoded.mean.shape == (2, 3, 48, 80)
    assert encoded.log_scale.shape == (2, 1, 12, 20)
    output = pipeline.unet(torch.randn(2, 48, 12, 20), encoded.features, torch.rand(2))
    assert output.shape == (2, 48, 12, 20)


def test_an_untrained_encoder_gives_bicubic():
    low_res = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        encoder = LowResEncoder(16, 2)
        encoder.correction.bias.zero_()
        assert torch.equal(encoder(low_res, torch.zeros(1)).mean, upsample(low_res))


def test_context_starts_as_nothing_and_then_reaches_far():
    torch.manual_seed(0)
    plain, wide = LowResEncoder(8, 2), LowResEncoder(8, 2, context_blocks=3)
    wide.load_state_dict(plain.state_dict(), strict=False)
    low_res, level = torch.rand(1, 3, 64, 64) * 2 - 1, torch.zeros(1)
    changed = low_res.clone()
    changed[..., :4, :4] += 0.5
    with torch.no_grad():
        assert torch.equal(plain(low_res, level).features, wide(low_res, level).features)
        for encoder, reach in ((plain, 4 + 5), (wide, 64)):
            for parameter in encoder.parameters():
                torch.nn.init.normal_(parameter, std=0.2)
            difference = (encoder(low_res, level).features - encoder(changed, level).features).abs().amax((0, 1, 2))
            assert int(difference.nonzero().max()) + 1 in range(reach // 2, reach + 1)
    assert (plain.multiple, wide.multiple) == (1, 4)


def test_the_deepest_context_may_be_wider():
    encoder = LowResEncoder(8, 2, context_blocks=3, context_channels=12)
    assert encoder.context is not None
    assert encoder.context.blocks[0].conv1.weight.shape == (12, 12, 3, 3)
    assert encoder(torch.zeros(1, 3, 8, 12), torch.zeros(1)).features.shape == (1, 8, 8, 12)


def test_the_views_of_a_picture_differ_and_are_turned_back():
    square, oblong = torch.arange(9.0).view(1, 1, 3, 3), torch.rand(1, 2, 3, 5)
    assert len({tuple(turn(square, view).flatten().tolist()) for view in range(VIEWS)}) == VIEWS == 8
    for view in range(VIEWS):
        assert torch.equal(turn_back(turn(oblong, view), view), oblong)


@pytest.mark.parametrize(("views", "symmetries"), [(1, (0,)), (2, (0, 1)), (4, (0, 1, 2, 3)), (8, range(8))])
def test_the_mean_over_views_keeps_their_symmetries(small_pipeline, views, symmetries):
    low_res, level = torch.rand(1, 3, 8, 12) * 2 - 1, torch.zeros(1)
    with torch.no_grad():
        whole = estimate(small_pipeline.encoder, low_res, level, views)
        each = [small_pipeline.encoder(turn(low_res, view), level) for view in range(views)]
        for view in range(VIEWS):
            other = estimate(small_pipeline.encoder, turn(low_res, view), level, views)
            for a, b in ((whole.mean, other.mean), (whole.log_scale, other.log_scale)):
                assert torch.allclose(turn(a, view), b, atol=1e-6) == (view in symmetries)
    mean = torch.stack([turn_back(encoded.mean, view) for view, encoded in enumerate(each)]).mean(0)
    assert torch.allclose(whole.mean, mean, atol=1e-6)
    assert torch.equal(whole.features, each[0].features)


def test_an_encoder_without_blocks_is_the_papers_conditioning():
    low_res = torch.rand(1, 3, 16, 16) * 2 - 1
    encoded = LowResEncoder(3, 0)(low_res, torch.zeros(1))
    assert torch.equal(encoded.features, upsample(low_res))
    assert encoded.mean.abs().max() == 0 and encoded.log_scale.abs().max() == 0


def test_normalisation_looks_at_one_position_only():
    norm, x = ChannelNorm(8), torch.randn(1, 8, 6, 6)
    changed = x.clone()
    changed[..., 0, 0] += 5
    difference = (norm(x) - norm(changed)).abs().amax(dim=(0, 1))
    assert difference[0, 0] > 0
    assert difference.flatten()[1:].max() == 0


def test_a_far_pixel_changes_nothing():
    torch.manual_seed(0)
    unet = SR3UNet(patch_size=1, condition_channels=3, base_channels=8, multipliers=(1, 2))
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    noisy, condition = torch.randn(1, 3, 96, 96), torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        before = unet(noisy, condition, torch.tensor([0.5]))
        condition[..., :4, :4] += 3
        after = unet(noisy, condition, torch.tensor([0.5]))
    assert (before - after)[..., :4, :4].abs().max() > 1e-4
    assert torch.equal(before[..., 48:, 48:], after[..., 48:, 48:])


def test_unet_is_told_the_noise_level():
    torch.manual_seed(0)
    unet = SR3UNet(base_channels=8, multipliers=(1,), condition_channels=4)
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    noisy, condition = torch.randn(1, 48, 8, 8), torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        low, high = (unet(noisy, condition, torch.tensor([g])) for g in (0.1, 0.9))
    assert (low - high).abs().max() > 1e-4


def test_unet_with_gain_keeps_what_it_is_given():
    torch.manual_seed(0)
    unet = SR3UNet(base_channels=8, multipliers=(1, 2), condition_channels=4, gain=True)
    noisy, condition, gamma = torch.randn(2, 48, 8, 8), torch.randn(2, 4, 8, 8), torch.tensor([0.1, 0.9])
    with torch.no_grad():
        unet.kept.bias.fill_(0.5)
        unet.tail.bias.fill_(0.25)
        torch.testing.assert_close(unet(noisy, condition, gamma), 0.25 + 0.5 * noisy)
