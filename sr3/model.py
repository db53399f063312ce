"""The networks of the second stage: the low-resolution encoder and the γ-conditioned denoiser.

Nothing in them looks across space but convolutions (attention only where the paper's preset asks for it), so a
tile of a picture gives what the whole picture gives there, away from the tile's border.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

SCALE = 4
SMALLEST_SCALE = 1 / 255  # of a residual in [-1, 1]: half a level of eight bits


def upsample(low_res: Tensor, factor: int = SCALE) -> Tensor:
    """Bicubic enlargement (a = −0.5, as Pillow and MATLAB do it): (N, C, h, w) to (N, C, factor·h, factor·w)."""
    size = (low_res.shape[-2] * factor, low_res.shape[-1] * factor)
    return F.interpolate(low_res.float(), size, mode="bicubic", antialias=True).to(low_res.dtype)


def reduce(high_res: Tensor, factor: int = SCALE) -> Tensor:
    """Antialiased bicubic reduction (a = −0.5): (N, C, factor·h, factor·w) to (N, C, h, w)."""
    size = (high_res.shape[-2] // factor, high_res.shape[-1] // factor)
    return F.interpolate(high_res.float(), size, mode="bicubic", antialias=True).to(high_res.dtype)


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels at each position of (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


@dataclass
class EncoderOutput:
    mean: Tensor
    """μ (N, 3, 4h, 4w), the regression estimate of high_res."""
    log_scale: Tensor
    """(N, 1, h, w): the logarithm of s, the expected size of high_res − μ."""
    features: Tensor
    """(N, channels, h, w), the denoiser's condition."""


class PlainBlock(nn.Module):
    """Two 3×3 convolutions around a ReLU, and a skip (EDSR, arXiv 1707.02921): no normalisation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(x)))


class Context(nn.Module):
    """What features (N, C, h, w) hold over long distances, where alone strong noise can be told from texture: plain
    blocks at a half and, with `deepest` channels, at a quarter of the resolution, for a third of the price of 16 at
    the whole. h and w are multiples of `MULTIPLE`."""

    MULTIPLE = 4

    def __init__(self, channels: int, num_blocks: int, deepest: int) -> None:
        super().__init__()
        few = -(-num_blocks // 3)
        self.before = nn.Sequential(*(PlainBlock(channels) for _ in range(few)))
        self.widen = nn.Conv2d(channels, deepest, 1) if deepest != channels else nn.Identity()
        self.blocks = nn.Sequential(*(PlainBlock(deepest) for _ in range(num_blocks)))
        self.narrow = nn.Conv2d(deepest, channels, 1) if deepest != channels else nn.Identity()
        self.after = nn.Sequential(*(PlainBlock(channels) for _ in range(few)))
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        half = self.before(F.avg_pool2d(x, 2))
        quarter = self.narrow(self.blocks(self.widen(F.avg_pool2d(half, 2))))
        half = self.after(half + F.interpolate(quarter, scale_factor=2.0, mode="bilinear"))
        return x + F.interpolate(self.out(half), scale_factor=2.0, mode="bilinear")


class LowResEncoder(ModelMixin, ConfigMixin):
    """Reads low_res once: features, the regression estimate μ (bicubic plus a correction), and the scale s of
    what μ misses, so that high_res = μ + s·d with d of about unit variance.

    With `context_blocks` a quarter of the blocks come before a `Context` of so many (of `context_channels`, as many as
    `channels` if None) and the rest after it; sides must then be multiples of `multiple`. With no blocks at all it is
    the paper's conditioning: features are low_res enlarged by bicubic, μ = 0 and s = 1.
    """

    @register_to_config
    def __init__(
        self, channels: int = 64, num_blocks: int = 16, context_blocks: int = 0, context_channels: int | None = None
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(PlainBlock(channels) for _ in range(num_blocks))
        self.context = (
            Context(channels, context_blocks, context_channels or channels) if num_blocks and context_blocks else None
        )
        if not num_blocks:  # diffusers loads no model without tensors
            self.register_buffer("factor", torch.tensor(float(SCALE)))
        else:
            self.head = nn.Conv2d(4, channels, 3, padding=1)
            self.correction = nn.Conv2d(channels, 3 * SCALE**2, 3, padding=1)
            self.scale = nn.Conv2d(channels, 1, 3, padding=1)
            nn.init.zeros_(self.correction.weight)
            nn.init.zeros_(self.scale.weight)
            nn.init.constant_(self.scale.bias, math.log(0.1))  # type: ignore[arg-type]

    @property
    def multiple(self) -> int:
        return 1 if self.context is None else Context.MULTIPLE

    def forward(self, low_res: Tensor, aug_level: Tensor) -> EncoderOutput:
        """low_res (N, 3, h, w) in [-1, 1], with noise of a known level aug_level (N,) in [0, 1) on it."""
        bicubic = upsample(low_res.float())  # in float32 whatever the model's type: eight bits of a picture need it
        if not self.blocks:
            zero = bicubic.new_zeros(low_res.shape[0], 1, *low_res.shape[-2:])
            return EncoderOutput(torch.zeros_like(bicubic), zero, bicubic.to(self.dtype))
        level = aug_level.to(low_res.dtype).view(-1, 1, 1, 1).expand(-1, 1, *low_res.shape[-2:])
        first = self.head(torch.cat([low_res, level], dim=1).to(self.head.weight.dtype))  # (N, channels, h, w)
        features = first
        for index, block in enumerate(self.blocks):
            if self.context is not None and index == len(self.blocks) // 4:
                features = self.context(features)
            features = block(features)
        features = features + first
        mean = bicubic + F.pixel_shuffle(self.correction(features), SCALE)  # (N, 3, 4h, 4w)
        log_scale = self.scale(features).clamp(math.log(SMALLEST_SCALE), 0)
        return EncoderOutput(mean, log_scale, features)


def turn(x: Tensor, view: int) -> Tensor:
    """One of the VIEWS symmetric views of x (N, C, H, W): 0 is x, 1 its mirror image; from 4 on, H and W swap."""
    flipped = x.flip([axis for axis in (-1, -2) if view & -axis])
    return flipped.transpose(-1, -2) if view & 4 else flipped


def turn_back(x: Tensor, view: int) -> Tensor:
    """The inverse of `turn`."""
    return turn(x.transpose(-1, -2), view & 3) if view & 4 else turn(x, view)


def estimate(encoder: LowResEncoder, low_res: Tensor, aug_level: Tensor, views: int) -> EncoderOutput:
    """The encoder's output, but of μ and log s the means over so many views of low_res, which err less than each: the
    geometric self-ensemble of EDSR (arXiv 1707.02921, section 3.4)."""
    encoded: EncoderOutput = encoder(low_res, aug_level)
    for view in range(1, views):
        other = encoder(turn(low_res, view), aug_level)
        encoded.mean = torch.lerp(encoded.mean, turn_back(other.mean, view), 1 / (view + 1))
        encoded.log_scale = torch.lerp(encoded.log_scale, turn_back(other.log_scale, view), 1 / (view + 1))
    return encoded


class GammaEmbedding(nn.Module):
    """The noise level √γ (N,) as (N, width) (SR3, section 2.3: the network is told γ, not a step)."""

    def __init__(self, base: int, width: int) -> None:
        super().__init__()
        self.frequencies = base // 2
        self.mlp = nn.Sequential(nn.Linear(2 * self.frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, gamma: Tensor) -> Tensor:
        dtype = next(self.mlp.parameters()).dtype
        steps = torch.arange(self.frequencies).to(gamma.device) / self.frequencies
        angles = 1000 * gamma.float().sqrt()[:, None] * torch.exp(-math.log(10_000) * steps)
        return self.mlp(torch.cat([angles.sin(), angles.cos()], dim=1).to(dtype))


class Attention(nn.Module):
    """Self-attention over positions, for the paper's preset only: it looks across space."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (N, H·W, C)
        query, key, value = self.qkv(tokens).chunk(3, dim=-1)
        mixed = self.out(F.scaled_dot_product_attention(query, key, value))
        return (x + mixed.transpose(1, 2).reshape(x.shape)) * math.sqrt(0.5)


class ResBlock(nn.Module):
    """BigGAN's residual block with γ as scale and shift, skips scaled by 1/√2 (SR3, appendix A)."""

    def __init__(
        self, inner: int, outer: int, width: int, dropout: float = 0.0, resample: str = "", attention: bool = False
    ) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(inner)
        self.conv1 = nn.Conv2d(inner, outer, 3, padding=1)
        self.film = nn.Linear(width, 2 * outer)
        self.norm2 = ChannelNorm(outer)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1)
        self.skip = nn.Conv2d(inner, outer, 1) if inner != outer else nn.Identity()
        self.attention = Attention(outer) if attention else nn.Identity()
        self.resample = resample
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = F.silu(self.norm1(x))
        if self.resample == "down":
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)  # (N, C, H/2, W/2)
        elif self.resample == "up":
            h, x = (F.interpolate(v, scale_factor=2.0, mode="nearest") for v in (h, x))  # (N, C, 2H, 2W)
        h = self.norm2(self.conv1(h))
        scale, shift = self.film(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv2(self.dropout(F.silu(h * (1 + scale) + shift)))
        return self.attention((self.skip(x) + h) * math.sqrt(0.5))


class SR3UNet(ModelMixin, ConfigMixin):
    """The denoiser f_θ(condition, noisy, γ): what it predicts (d, or ε for the paper) is the scheduler's
    `prediction_type`. It works on the residual unshuffled by `patch_size`.

    With `gain` the layers also say how much of each number of `noisy` is kept as it is, a Wiener filter's gain: what
    little noise lies on need not pass through them, for which they are too narrow. Sides must be multiples of
    `multiple` (of unshuffled positions).
    """

    @register_to_config
    def __init__(
        self,
        patch_size: int = 4,
        condition_channels: int = 64,
        base_channels: int = 48,
        multipliers: tuple[int, ...] = (1, 2, 3),
        num_blocks: int = 1,
        attention_levels: tuple[int, ...] = (),
        dropout: float = 0.0,
        gain: bool = False,
    ) -> None:
        super().__init__()
        inside = 3 * patch_size**2
        widths = [base_channels * m for m in multipliers]
        width = 4 * base_channels
        last = len(widths) - 1
        self.embedding = GammaEmbedding(base_channels, width)
        self.head = nn.Conv2d(inside + condition_channels, base_channels, 3, padding=1)
        self.down, self.up, skips, current = nn.ModuleList(), nn.ModuleList(), [base_channels], base_channels

        def stage(inner: int, outer: int, level: int) -> ResBlock:
            return ResBlock(inner, outer, width, dropout, attention=level in attention_levels)

        def resampling(channels: int, direction: str) -> ResBlock:
            return ResBlock(channels, channels, width, dropout, direction)

        for level, channels in enumerate(widths):
            for _ in range(num_blocks):
                self.down.append(stage(current, channels, level))
                current = channels
                skips.append(current)
            if level < last:
                self.down.append(resampling(current, "down"))
                skips.append(current)
        self.middle = nn.ModuleList([stage(current, current, last), stage(current, current, -1)])
        for level, channels in reversed(list(enumerate(widths))):
            for _ in range(num_blocks + 1):
                self.up.append(stage(current + skips.pop(), channels, level))
                current = channels
            if level:
                self.up.append(resampling(current, "up"))
        self.norm = ChannelNorm(current)
        self.tail = nn.Conv2d(current, inside, 3, padding=1)
        nn.init.zeros_(self.tail.weight)
        self.kept = nn.Conv2d(current, inside, 3, padding=1) if gain else None
        if self.kept is not None:
            nn.init.zeros_(self.kept.weight)
            nn.init.zeros_(self.kept.bias)  # type: ignore[arg-type]

    @property
    def multiple(self) -> int:
        return int(2 ** (len(self.config.multipliers) - 1))

    def forward(self, noisy: Tensor, condition: Tensor, gamma: Tensor) -> Tensor:
        """noisy (N, 3·patch², H, W), condition (N, condition_channels, H, W), gamma (N,) to a tensor like noisy."""
        embedding = self.embedding(gamma)  # (N, width)
        x = self.head(torch.cat([noisy, condition], dim=1))  # (N, base, H, W)
        skips = [x]
        for stage in self.down:
            x = stage(x, embedding)
            skips.append(x)
        for stage in self.middle:
            x = stage(x, embedding)
        for stage in self.up:
            if stage.resample != "up":
                x = torch.cat([x, skips.pop()], dim=1)
            x = stage(x, embedding)
        x = F.silu(self.norm(x))
        return self.tail(x) if self.kept is None else torch.addcmul(self.tail(x), self.kept(x), noisy)
