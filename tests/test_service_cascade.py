"""The cascade with small stand-ins for the two pipelines: seeds, sizes, settings, steps, refusals."""

import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import SlicedAttnProcessor
from diffusers.utils import logging as diffusers_log
from transformers.utils import logging as transformers_log

import ldm
from ldm.loading import GUIDANCE
from service.cascade import DiffusersCascade, load_cascade
from service.requests import GenerateRequest, GenerateResult, InvalidRequest, NotWanted, OutOfMemory
from service.settings import Settings
from service.upscale import Progress
from tests.ldm_families import build, tokenizer

StepEnd = Callable[..., dict[str, Any]]


class DDIMScheduler:
    """As much of diffusers' as a pipeline's copy for one request needs."""

    config: ClassVar[dict[str, Any]] = {}
    alphas_cumprod = torch.ones(1)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "DDIMScheduler":
        return cls()

    def step(self) -> None:
        pass


class Tokenizer:
    """A token a word, and two around them."""

    def __init__(self, model_max_length: int) -> None:
        self.model_max_length = model_max_length

    def __call__(self, text: str, verbose: bool) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[0, *text.split(), 1])


class Pipeline:
    """What both stand-ins have: a scheduler, the calls they got, a step callback."""

    config: ClassVar[dict[str, Any]] = {}

    def __init__(self, **components: object) -> None:
        self.scheduler = DDIMScheduler()
        self.components = components
        self.calls: list[dict[str, Any]] = []
        self.steps_run: list[int] = []  # shared with copies

    def set_progress_bar_config(self, disable: bool) -> None:
        assert disable

    def maybe_free_model_hooks(self) -> None: ...

    def _steps(self, count: int, callback_on_step_end: StepEnd) -> None:
        for step in range(count):
            self.steps_run.append(step)
            assert callback_on_step_end(self, step, 0, {"latents": step}) == {"latents": step}


class Base(Pipeline):
    """A 6×4 picture of the generator's noise."""

    images: Callable[[torch.Generator], torch.Tensor] = staticmethod(lambda g: torch.rand(1, 3, 4, 6, generator=g))
    flagged: list[bool] | None = None

    def __call__(
        self,
        prompt: list[str],
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        negative_prompt: list[str] | None = None,
        *,
        generator: list[torch.Generator],
        output_type: str,
        callback_on_step_end: StepEnd,
    ) -> SimpleNamespace:
        given = (prompt, num_inference_steps, guidance_scale, negative_prompt)
        self.calls.append(dict(zip(("prompt", "steps", "guidance", "negative"), given, strict=True)))
        assert output_type == "pt"
        self._steps(num_inference_steps, callback_on_step_end)
        images = torch.cat([self.images(each) for each in generator])
        return SimpleNamespace(images=images, nsfw_content_detected=self.flagged)


class Distilled(Pipeline):
    """A pipeline that takes neither guidance nor a negative prompt."""

    def __call__(
        self,
        prompt: list[str],
        num_inference_steps: int,
        generator: list[torch.Generator],
        output_type: str,
        callback_on_step_end: StepEnd,
    ) -> SimpleNamespace:
        return SimpleNamespace(images=torch.zeros(len(prompt), 3, 4, 6))


class Enlarger(Pipeline):
    """Each pixel `factor` times wide and high; notes what it got."""

    factor = 4
    room = 10**9  # enlarged pixels of a batch

    def plan(self, height: int, width: int, count: int = 1) -> bool:
        return count == 1 or height * width * self.factor**2 * count <= self.room

    def __call__(
        self,
        image: list[np.ndarray],
        num_inference_steps: int,
        generator: list[torch.Generator],
        aug_level: float,
        callback_on_step_end: StepEnd,
        output_type: str,
    ) -> SimpleNamespace:
        noise = [torch.rand(1, generator=each).item() for each in generator]
        self.calls.append({"image": image, "steps": num_inference_steps, "aug_level": aug_level, "noise": noise})
        assert output_type == "uint8"
        self._steps(num_inference_steps, callback_on_step_end)
        return SimpleNamespace(images=[p.repeat(self.factor, axis=0).repeat(self.factor, axis=1) for p in image])


def child_noise(seed: int, child: int, *shape: int) -> np.ndarray:
    """The first noise that a stage should see, worked out here anew."""
    state = np.random.SeedSequence(seed, spawn_key=(child,)).generate_state(1, np.uint64)
    return torch.rand(*shape, generator=torch.Generator().manual_seed(int(state[0]))).numpy()


def make(base: Pipeline | None = None, enlarger: Pipeline | None = None, **settings: Any) -> DiffusersCascade:
    return DiffusersCascade(base or Base(), enlarger or Enlarger(), Settings(**settings))


def one(
    cascade: DiffusersCascade, request: GenerateRequest, on_step: Callable[[Progress], None] | None = None
) -> GenerateResult:
    """The one picture, or its own exception raised."""
    (outcome,) = cascade.generate([request], on_step)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


@pytest.mark.parametrize("upscale", [1, 4, 16])
def test_each_stage_has_a_child_seed_and_the_picture_its_size(upscale: int) -> None:
    enlarger = Enlarger()
    result = one(make(enlarger=enlarger), GenerateRequest("a", seed=7, upscale=upscale))
    drawn = (child_noise(7, 0, 3, 4, 6).transpose(1, 2, 0) * 255).round().astype(np.uint8)
    assert result.image.dtype == np.uint8
    assert np.array_equal(result.image, drawn.repeat(upscale, axis=0).repeat(upscale, axis=1))
    assert [call["noise"] for call in enlarger.calls] == [
        [child_noise(7, child, 1).item()] for child in {1: [], 4: [1], 16: [1, 2]}[upscale]
    ]
    assert result.used.base_size == (6, 4)
    assert list(result.seconds) == ["base", "x4", "x16"][: 1 + len(enlarger.calls)]


def test_request_comes_before_settings_and_settings_before_the_pipeline() -> None:
    base, enlarger = Base(), Enlarger()
    cascade = make(base, enlarger, base_steps=2, sr_steps=3, aug_level=0.25)
    plain = one(cascade, GenerateRequest("a", seed=1)).used
    assert (plain.steps, plain.guidance_scale, plain.sr_steps, plain.aug_level) == (2, 7.5, 3, 0.25)
    asked = GenerateRequest("a", seed=1, negative_prompt="b", steps=1, guidance_scale=0.0, sr_steps=0, aug_level=0.0)
    used = one(cascade, asked).used
    assert (used.steps, used.guidance_scale, used.sr_steps, used.aug_level) == (1, 0.0, 0, 0.0)
    assert base.calls == [
        {"prompt": ["a"], "steps": 2, "guidance": 7.5, "negative": None},
        {"prompt": ["a"], "steps": 1, "guidance": 0.0, "negative": ["b"]},
    ]
    assert [(call["steps"], call["aug_level"]) for call in enlarger.calls] == [(3, 0.25), (0, 0.0)]
    assert one(make(guidance_scale=3.0), GenerateRequest("a", seed=1)).used.guidance_scale == 3.0


def test_names_of_models_are_reported_without_their_place(tmp_path: Any) -> None:
    directory = tmp_path / "my-model"
    directory.mkdir()
    (directory / "model_index.json").write_text("{}")
    used = one(make(base_model="some/one", sr_model=str(directory)), GenerateRequest("a", seed=1)).used
    assert (used.base_model, used.sr_model) == ("some/one", "my-model")
    assert (used.sampler, used.sr_sampler) == ("DDIM", "DDIM")


def test_what_was_not_enlarged_reports_no_enlarging() -> None:
    used = one(make(), GenerateRequest("a", seed=1, upscale=1)).used
    assert used.sr_model is used.sr_sampler is used.sr_steps is used.aug_level is None


def test_steps_are_told_and_raising_there_ends_the_work() -> None:
    base, enlarger = Base(), Enlarger()
    cascade = make(base, enlarger)
    request = GenerateRequest("a", seed=1, upscale=16, steps=2, sr_steps=1)
    told: list[Progress] = []
    one(cascade, request, told.append)
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
        one(cascade, request, stop)
    assert (len(base.steps_run), len(enlarger.calls)) == (2 + 1, 2)


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
            one(cascade, request)
        else:
            with pytest.raises(InvalidRequest, match=refused) as raised:
                one(cascade, request)
            assert (raised.value.field, raised.value.got) == (field, text)


def test_text_beyond_what_the_pipeline_hands_its_tokenizers_is_refused() -> None:
    class Short(Base):
        def __call__(  # type: ignore[override]
            self, prompt: list[str], max_sequence_length: int = 8, *, callback_on_step_end: StepEnd, **options: Any
        ) -> SimpleNamespace:
            return super().__call__(prompt, callback_on_step_end=callback_on_step_end, **options)

    for limits, words in (((5, 512), 6), ((5, 10**30), 6), ((5, 7), 5)):
        cascade = make(Short(tokenizer=Tokenizer(limits[0]), tokenizer_3=Tokenizer(limits[1])))
        one(cascade, GenerateRequest("word " * words, seed=1))
        with pytest.raises(InvalidRequest, match=f"{words + 3} tokens; .* at most {words + 2}"):
            one(cascade, GenerateRequest("word " * (words + 1), seed=1))


@pytest.mark.parametrize("asked", [{"guidance_scale": 1.0}, {"negative_prompt": "b"}])
def test_what_the_pipeline_does_not_take_is_refused_by_name(asked: dict[str, Any]) -> None:
    cascade = make(Distilled(), guidance_scale=3.0)
    assert one(cascade, GenerateRequest("a", seed=1)).used.guidance_scale is None
    with pytest.raises(InvalidRequest, match="takes none") as raised:
        one(cascade, GenerateRequest("a", seed=1, **asked))
    assert [raised.value.field] == list(asked)


def test_picture_over_the_limit_is_refused_before_it_is_enlarged() -> None:
    enlarger = Enlarger()
    cascade = make(enlarger=enlarger, max_pixels=24 * 16)
    one(cascade, GenerateRequest("a", seed=1, upscale=4))
    with pytest.raises(InvalidRequest, match="96×64 is over this server's 384 pixels") as raised:
        one(cascade, GenerateRequest("a", seed=1, upscale=16))
    assert (raised.value.field, raised.value.got) == ("upscale", 16)
    assert len(enlarger.calls) == 1


def test_size_not_promised_is_never_delivered() -> None:
    enlarger = Enlarger()
    enlarger.factor = 2
    with pytest.raises(RuntimeError, match=r"promised uint8 \(16, 24, 3\), made uint8 \(8, 12, 3\)"):
        one(make(enlarger=enlarger), GenerateRequest("a", seed=1))


def test_picture_that_is_not_finite_is_never_delivered() -> None:
    base = Base()
    base.images = lambda generator: torch.full((1, 3, 4, 6), torch.nan)
    with pytest.raises(RuntimeError, match="not finite"):
        one(make(base), GenerateRequest("a", seed=1))


def test_picture_that_a_safety_checker_blacked_out_is_refused() -> None:
    base = Base()
    base.flagged = [True]
    with pytest.raises(InvalidRequest, match="safety checker"):
        one(make(base), GenerateRequest("a", seed=1))


def test_importing_the_application_loads_no_models_and_no_frameworks() -> None:
    heavy = ("torch", "diffusers", "transformers", "cv2", "ldm", "degradation")
    program = f"import sys, service.__main__; print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_equal_requests_are_made_together_and_a_bad_one_fails_alone() -> None:
    base = Base(tokenizer=Tokenizer(5))
    cascade = make(base)
    requests = [GenerateRequest(prompt, seed) for prompt, seed in (("a", 1), ("word " * 9, 2), ("b", 3))]
    first, bad, last = cascade.generate(requests)
    assert base.calls[0]["prompt"] == ["a", "b"]
    assert isinstance(bad, InvalidRequest)
    for outcome, request in ((first, requests[0]), (last, requests[2])):
        assert isinstance(outcome, GenerateResult)
        assert np.array_equal(outcome.image, one(make(), request).image)


def test_pictures_that_would_be_cut_otherwise_together_than_alone_are_not_enlarged_together() -> None:
    both = [GenerateRequest("a", seed, upscale=16) for seed in (1, 2)]
    enlarger, room = Enlarger(), 2 * 64 * 96
    enlarger.room = room - 1
    cascade = make(enlarger=enlarger)
    with pytest.raises(OutOfMemory):
        cascade.generate(both)
    assert enlarger.calls == []  # not even the first of two times
    assert isinstance(cascade.generate(both[:1])[0], GenerateResult)
    enlarger.room = room
    assert all(isinstance(each, GenerateResult) for each in cascade.generate(both))


def test_cancelled_mates_are_left_out_from_the_next_stage_on() -> None:
    enlarger, seen = Enlarger(), list[Progress]()
    requests = [GenerateRequest("a", 1), GenerateRequest("b", 2), GenerateRequest("c", 3)]
    first, gone, last = make(Base(), enlarger).generate(requests, seen.append, lambda index: index != 1)
    assert isinstance(gone, NotWanted)
    assert len(enlarger.calls[0]["image"]) == 2
    assert {each.stage: each.of for each in seen} == {"base": (0, 1, 2), "x4": (0, 2)}
    for outcome, request in ((first, requests[0]), (last, requests[2])):
        assert isinstance(outcome, GenerateResult)
        assert np.array_equal(outcome.image, one(make(), request).image)
    nothing = make(Base(), enlarger).generate(requests[:1], None, lambda index: False)
    assert isinstance(nothing[0], NotWanted) and len(enlarger.calls) == 1


def test_unsafe_picture_fails_alone() -> None:
    base = Base()
    base.flagged = [True, False]
    bad, good = make(base).generate([GenerateRequest("a", 1), GenerateRequest("b", 2)])
    assert isinstance(bad, InvalidRequest)
    assert isinstance(good, GenerateResult)


def test_keys_are_equal_but_for_words_and_seed() -> None:
    first = GenerateRequest("a", 1, negative_prompt="c", steps=3)
    assert first.key() == GenerateRequest("b", 2, negative_prompt="d", steps=3).key()
    for other in ({"steps": 4}, {"negative_prompt": ""}, {"scheduler": "DDIM"}, {"width": 8}, {"upscale": 1}):
        assert first.key() != replace(first, **other).key()


def test_the_default_guidance_goes_with_the_weights(tmp_path: Path) -> None:
    shutil.copytree(ldm.BUNDLED, tmp_path / "model")
    request = GenerateRequest("a red apple", seed=1, upscale=1, steps=1)
    model = str(tmp_path / "model")
    assert one(make(ldm.load(device="cpu")), request).used.guidance_scale == 4.0
    assert one(make(ldm.load(model, "cpu"), base_model=model), request).used.guidance_scale == 4.0
    (tmp_path / "model" / GUIDANCE).unlink()
    assert one(make(ldm.load(model, "cpu"), base_model=model), request).used.guidance_scale == 7.5


def test_settings_that_save_memory_reach_the_base_model() -> None:
    for saving in (False, True):
        cascade = load_cascade(Settings(device="cpu", attention_slicing=saving, vae_tiling=saving, log_prompts=True))
        base = cascade._base  # type: ignore[attr-defined]
        assert base.vae.use_tiling == saving
        sliced = [isinstance(each, SlicedAttnProcessor) for each in base.unet.attn_processors.values()]
        assert all(sliced) == any(sliced) == saving
    with pytest.raises(ldm.ModelError, match="offload is 'sequential', which needs an accelerator"):
        load_cascade(Settings(device="cpu", offload="sequential"))


def test_unknown_scheduler_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest, match="this model takes DDPM, DDIM") as raised:
        one(make(), GenerateRequest("a", seed=1, scheduler="no"))
    assert raised.value.field == "scheduler"


@pytest.fixture(scope="module")
def flux_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Flux: CLIP reads 16 tokens, T5 64."""
    folder = tmp_path_factory.mktemp("flux")
    pipeline = build("flux")
    pipeline.register_modules(tokenizer_2=tokenizer(64))
    pipeline.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("asked", [False, True])
def test_what_of_a_prompt_one_tokenizer_cuts_off_is_logged_only_when_asked(flux_folder: Path, asked: bool) -> None:
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("diffusers")
    before = diffusers_log.get_verbosity(), transformers_log.get_verbosity()
    logger.addHandler(handler)
    try:
        cascade = load_cascade(Settings(base_model=str(flux_folder), device="cpu", log_prompts=asked))
        request = GenerateRequest("a red apple " * 8, seed=1, upscale=1, steps=1, width=32, height=32)
        (made,) = cascade.generate([request])
    finally:
        logger.removeHandler(handler)
        diffusers_log.set_verbosity(before[0])
        transformers_log.set_verbosity(before[1])
    assert isinstance(made, GenerateResult), made
    assert any("red apple" in each for each in said) is asked
