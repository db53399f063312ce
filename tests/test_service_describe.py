"""What a base model of each family draws, and what sizes it takes, as the service says it."""

from types import SimpleNamespace
from typing import Any

import diffusers as d
import pytest

from service.cascade import DiffusersCascade
from service.describe import own_size, size_multiple
from service.requests import GenerateRequest, GenerateResult, InvalidRequest
from service.settings import Settings
from tests.ldm_families import FAMILIES, build
from tests.test_service_cascade import Base, Enlarger, StepEnd, make, one


def cascade_of(base: Any) -> DiffusersCascade:
    return DiffusersCascade(base, Enlarger(), Settings(base_steps=1))


def drawn(cascade: DiffusersCascade, **size: int) -> tuple[int, int]:
    (result,) = cascade.generate([GenerateRequest("a red apple", 1, upscale=1, **size)])  # type: ignore[arg-type]
    assert isinstance(result, GenerateResult), result
    height, width = result.image.shape[:2]
    assert result.used.base_size == (width, height)
    return width, height


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_draws_the_size_that_is_told_and_takes_what_is_told(family: str) -> None:
    cascade = cascade_of(build(family))
    info = cascade.info()
    assert drawn(cascade) == (info.width, info.height)
    assert info.size_multiple is not None
    side = 4 * info.size_multiple
    assert drawn(cascade, width=side, height=side) == (side, side)
    with pytest.raises(InvalidRequest, match=f"takes multiples of {info.size_multiple}"):
        one(cascade, GenerateRequest("a red apple", 1, upscale=1, width=side + info.size_multiple // 2))


def test_a_size_must_fall_into_whole_patches() -> None:
    network = d.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=64, caption_projection_dim=32, pooled_projection_dim=64, out_channels=4,
    )  # fmt: skip
    base = d.StableDiffusion3Pipeline(**build("stable_diffusion_3").components | {"transformer": network})
    cascade = cascade_of(base)
    assert cascade.info().size_multiple == 4 and drawn(cascade) == (16, 16) and drawn(cascade, width=20) == (20, 16)
    assert size_multiple(build("flux")) == 2


def test_sizes_that_are_told_otherwise() -> None:
    class Told:
        def __call__(self, width: int = 24, height: int = 32) -> None: ...

    class Wide:
        unet = SimpleNamespace(config=SimpleNamespace(sample_size=[8, 16]))
        vae_scale_factor = 8

        def __call__(self, width: int | None = None, height: int | None = None) -> None: ...

    assert own_size(Told()) == (24, 32) and own_size(Wide()) == (128, 64)


def test_another_size_than_the_one_asked_for_is_never_delivered() -> None:
    class Stubborn(Base):
        vae_scale_factor = 2

        def __call__(  # type: ignore[override]
            self,
            prompt: list[str],
            width: int | None = None,
            height: int | None = None,
            *,
            callback_on_step_end: StepEnd,
            **options: Any,
        ) -> SimpleNamespace:
            return super().__call__(prompt, callback_on_step_end=callback_on_step_end, **options)

    cascade = make(Stubborn())
    assert one(cascade, GenerateRequest("a", 1, upscale=1, width=6, height=4)).used.base_size == (6, 4)
    with pytest.raises(InvalidRequest, match="the base model drew 4 in its place") as raised:
        one(cascade, GenerateRequest("a", 1, width=6, height=8))
    assert (raised.value.field, raised.value.got) == ("height", 8)
