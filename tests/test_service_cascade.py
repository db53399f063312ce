"""The cascade with small stand-ins for the two pipelines: seeds, sizes, settings, steps, refusals."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from service.cascade import BUNDLED_GUIDANCE, DiffusersCascade, GenerateRequest, InvalidRequest, Progress
from service.settings import Settings

StepEnd = Callable[..., dict[str, Any]]


class DDIMScheduler:
    """A name, as diffusers' schedulers have one."""


class Tokenizer:
    """A token a word, and two around them."""

    def __init__(self, model_max_length: int) -> None:
        self.model_max_length = model_max_length

    def __call__(self, text: str, verbose: bool) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[0, *text.split(), 1])


class Pipeline:
    """What both stand-ins have: a scheduler, the calls they got, a step callback."""

    def __init__(self, **components: object) -> None:
        self.scheduler = DDIMScheduler()
        self.components = components
        self.calls: list[dict[str, Any]] = []
        self.steps_run = 0

    def set_progress_bar_config(self, disable: bool) -> None:
        assert disable

    def _steps(self, count: int, callback_on_step_end: StepEnd) -> None:
        for step in range(count):
            self.steps_run += 1
            assert callback_on_step_end(self, step, 0, {"latents": step}) == {"latents": step}


class Base(Pipeline):
    """A 6×4 picture of the generator's noise."""

    images: Callable[[torch.Generator], torch.Tensor] = staticmethod(lambda g: torch.rand(1, 3, 4, 6, generator=g))
    flagged: list[bool] | None = None

    def __call__(
        self,
        prompt: str,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        negative_prompt: str | None = None,
        *,
        generator: torch.Generator,
        output_type: str,
        callback_on_step_end: StepEnd,
    ) -> SimpleNamespace:
        given = (prompt, num_inference_steps, guidance_scale, negative_prompt)
        self.calls.append(dict(zip(("prompt", "steps", "guidance", "negative"), given, strict=True)))
        assert output_type == "pt"
        self._steps(num_inference_steps, callback_on_step_end)
        return SimpleNamespace(images=self.images(generator), nsfw_content_detected=self.flagged)


class Distilled(Pipeline):
    """A pipeline that takes neither guidance nor a negative prompt."""

    def __call__(
        self,
        prompt: str,
        num_inference_steps: int,
        generator: torch.Generator,
        output_type: str,
        callback_on_step_end: StepEnd,
    ) -> SimpleNamespace:
        return SimpleNamespace(images=torch.zeros(1, 3, 4, 6))


class Enlarger(Pipeline):
    """Each pixel `factor` times wide and high; notes what it got."""

    factor = 4

    def __call__(
        self,
        image: np.ndarray,
        num_inference_steps: int,
        generator: torch.Generator,
        aug_level: float,
        callback_on_step_end: StepEnd,
        output_type: str,
    ) -> SimpleNamespace:
        noise = torch.rand(1, generator=generator).item()
        self.calls.append({"image": image, "steps": num_inference_steps, "aug_level": aug_level, "noise": noise})
        assert output_type == "uint8"
        self._steps(num_inference_steps, callback_on_step_end)
        return SimpleNamespace(images=[image.repeat(self.factor, axis=0).repeat(self.factor, axis=1)])


def child_noise(seed: int, child: int, *shape: int) -> np.ndarray:
    """The first noise that a stage should see, worked out here anew."""
    state = np.random.SeedSequence(seed, spawn_key=(child,)).generate_state(1, np.uint64)
    return torch.rand(*shape, generator=torch.Generator().manual_seed(int(state[0]))).numpy()


def make(base: Pipeline | None = None, enlarger: Pipeline | None = None, **settings: Any) -> DiffusersCascade:
    return DiffusersCascade(base or Base(), enlarger or Enlarger(), Settings(**settings))


@pytest.mark.parametrize("upscale", [1, 4, 16])
def test_each_stage_has_a_child_seed_and_the_picture_its_size(upscale: int) -> None:
    enlarger = Enlarger()
    result = make(enlarger=enlarger).generate(GenerateRequest("a", seed=7, upscale=upscale))
    drawn = (child_noise(7, 0, 3, 4, 6).transpose(1, 2, 0) * 255).round().astype(np.uint8)
    assert result.image.dtype == np.uint8
    assert np.array_equal(result.image, drawn.repeat(upscale, axis=0).repeat(upscale, axis=1))
    assert [call["noise"] for call in enlarger.calls] == [
        child_noise(7, child, 1).item() for child in {1: [], 4: [1], 16: [1, 2]}[upscale]
    ]
    assert result.used.base_size == (6, 4)
    assert list(result.seconds) == ["base", "x4", "x16"][: 1 + len(enlarger.calls)]


def test_request_comes_before_settings_and_settings_before_the_pipeline() -> None:
    base, enlarger = Base(), Enlarger()
    cascade = make(base, enlarger, base_steps=2, sr_steps=3, aug_level=0.25)
    plain = cascade.generate(GenerateRequest("a", seed=1)).used
    assert (plain.steps, plain.guidance_scale, plain.sr_steps, plain.aug_level) == (2, BUNDLED_GUIDANCE, 3, 0.25)
    asked = GenerateRequest("a", seed=1, negative_prompt="b", steps=1, guidance_scale=0.0, sr_steps=0, aug_level=0.0)
    used = cascade.generate(asked).used
    assert (used.steps, used.guidance_scale, used.sr_steps, used.aug_level) == (1, 0.0, 0, 0.0)
    assert base.calls == [
        {"prompt": "a", "steps": 2, "guidance": BUNDLED_GUIDANCE, "negative": None},
        {"prompt": "a", "steps": 1, "guidance": 0.0, "negative": "b"},
    ]
    assert [(call["steps"], call["aug_level"]) for call in enlarger.calls] == [(3, 0.25), (0, 0.0)]
    assert make(guidance_scale=3.0).generate(GenerateRequest("a", seed=1)).used.guidance_scale == 3.0


def test_names_of_models_are_reported_without_their_place(tmp_path: Any) -> None:
    directory = tmp_path / "my-model"
    directory.mkdir()
    (directory / "model_index.json").write_text("{}")
    used = make(base_model="some/one", sr_model=str(directory)).generate(GenerateRequest("a", seed=1)).used
    assert (used.base_model, used.sr_model) == ("some/one", "my-model")
    assert (used.sampler, used.sr_sampler) == ("DDIM", "DDIM")


def test_what_was_not_enlarged_reports_no_enlarging() -> None:
    used = make().generate(GenerateRequest("a", seed=1, upscale=1)).used
    assert used.sr_model is used.sr_sampler is used.sr_steps is used.aug_level is None


def test_steps_are_told_and_raising_there_ends_the_work() -> None:
    base, enlarger = Base(), Enlarger()
    cascade = make(base, enlarger)
    request = GenerateRequest("a", seed=1, upscale=16, steps=2, sr_steps=1)
    told: list[Progress] = []
    cascade.generate(request, told.append)
    assert [(each.stage, each.step, each.steps) for each in told] == [
        ("base", 0, 2),
        ("base", 1, 2),
        ("base", 2, 2),
        ("x4", 0, 1),
        ("x4", 1, 1),
        ("x16", 0, 1),
        ("x16", 1, 1),
    ]

    def stop(progress: Progress) -> None:
        if (progress.stage, progress.step) == ("base", 1):
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        cascade.generate(request, stop)
    assert (base.steps_run, len(enlarger.calls)) == (2 + 1, 2)


@pytest.mark.parametrize(
    ("limits", "words", "refused"),
    [
        ([5], 3, None),
        ([5], 4, "6 tokens; .* at most 5"),
        ([5, 9], 7, None),
        ([5, 9], 8, "10 tokens; .* at most 9"),
    ],
)
def test_text_that_every_tokenizer_would_cut_is_refused(limits: list[int], words: int, refused: str | None) -> None:
    names = ("tokenizer", "tokenizer_2")
    tokenizers = {name: Tokenizer(limit) for name, limit in zip(names, limits, strict=False)}
    cascade = make(Base(**tokenizers, text_encoder=None, tokenizer_3=None))
    text = "word " * words
    for field in ("prompt", "negative_prompt"):
        fields: dict[str, Any] = {field: text}
        request = replace(GenerateRequest("a", seed=1), **fields)
        if refused is None:
            cascade.generate(request)
        else:
            with pytest.raises(InvalidRequest, match=refused) as raised:
                cascade.generate(request)
            assert (raised.value.field, raised.value.got) == (field, text)


@pytest.mark.parametrize("asked", [{"guidance_scale": 1.0}, {"negative_prompt": "b"}])
def test_what_the_pipeline_does_not_take_is_refused_by_name(asked: dict[str, Any]) -> None:
    cascade = make(Distilled(), guidance_scale=3.0)
    assert cascade.generate(GenerateRequest("a", seed=1)).used.guidance_scale is None
    with pytest.raises(InvalidRequest, match="takes none") as raised:
        cascade.generate(GenerateRequest("a", seed=1, **asked))
    assert [raised.value.field] == list(asked)


def test_picture_over_the_limit_is_refused_before_it_is_enlarged() -> None:
    enlarger = Enlarger()
    cascade = make(enlarger=enlarger, max_pixels=24 * 16)
    cascade.generate(GenerateRequest("a", seed=1, upscale=4))
    with pytest.raises(InvalidRequest, match="96×64 is over this server's 384 pixels") as raised:
        cascade.generate(GenerateRequest("a", seed=1, upscale=16))
    assert (raised.value.field, raised.value.got) == ("upscale", 16)
    assert len(enlarger.calls) == 1


def test_size_not_promised_is_never_delivered() -> None:
    enlarger = Enlarger()
    enlarger.factor = 2
    with pytest.raises(RuntimeError, match=r"promised uint8 \(16, 24, 3\), made uint8 \(8, 12, 3\)"):
        make(enlarger=enlarger).generate(GenerateRequest("a", seed=1))


def test_picture_that_is_not_finite_is_never_delivered() -> None:
    base = Base()
    base.images = lambda generator: torch.full((1, 3, 4, 6), torch.nan)
    with pytest.raises(RuntimeError, match="not finite"):
        make(base).generate(GenerateRequest("a", seed=1))


def test_picture_that_a_safety_checker_blacked_out_is_refused() -> None:
    base = Base()
    base.flagged = [True]
    with pytest.raises(InvalidRequest, match="safety checker"):
        make(base).generate(GenerateRequest("a", seed=1))


def test_importing_the_application_loads_no_models_and_no_frameworks() -> None:
    heavy = ("torch", "diffusers", "transformers", "cv2", "ldm", "degradation")
    program = f"import sys, service.__main__; print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
