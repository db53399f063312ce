"""The measures where their answer is known, the classifier, and the whole command on small stand-ins."""

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from tokenizers import Tokenizer, models
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    PreTrainedTokenizerFast,
)

import ldm
import ldm.evaluate
from ldm.captions import Drawing
from ldm.classifier import FEATURES, load_judge, to_images, top_shares
from ldm.data import save_pack
from ldm.evaluate import EvaluateConfig, Prompts, draw, main, measure, prompts_of, read_sets, table
from ldm.metrics import clip_score, load_clip, smallest_difference
from ldm.train import ClassifierConfig
from ldm.train import main as train
from sr3.loop import LoopConfig

RNG = np.random.default_rng


def test_the_closest_two_pictures():
    pictures = RNG(0).integers(0, 256, (5, 8, 8, 3)).astype(np.uint8)
    assert smallest_difference(pictures) > 60
    pictures[3] = np.clip(pictures[1].astype(int) + 2, 0, 255)
    assert 1.5 < smallest_difference(pictures) <= 2


def test_shares_among_the_first():
    scores = np.array([[3.0, 2, 1], [1, 2, 3], [2, 3, 1]])
    assert top_shares(scores, np.array([0, 0, 0]), (1, 2, 3)) == pytest.approx((1 / 3, 2 / 3, 1))


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> Path:
    """Plain squares of three colours in three styles; each name's last style is held out."""
    path = tmp_path_factory.mktemp("pack") / "drawings.safetensors"
    colours = {"red card": (220, 20, 20), "green card": (20, 200, 20), "blue card": (20, 20, 220)}
    pictures, records = [], []
    for name, colour in colours.items():
        for style, inset in (("noto", 4), ("twemoji", 10), ("openmoji", 16)):
            picture = np.zeros((64, 64, 4), np.uint8)
            picture[inset:-inset, inset:-inset] = (*colour, 255)
            pictures.append(picture)
            records.append(Drawing(name, style, everyday=True, held_out=style == "openmoji"))
    save_pack(path, np.stack(pictures), records, [])
    return path


@pytest.fixture(scope="module")
def judged(pack, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("judge")
    loop = LoopConfig(steps=40, batch_size=8, warmup=5, learning_rate=2e-3, device="cpu", save_every=100)
    train(ClassifierConfig(pack, out, loop=loop))
    return out


def test_the_classifier_learns_names_and_recognises_what_was_kept_out(judged, tmp_path):
    judge = load_judge(judged)
    assert judge.names == ("blue card", "green card", "red card") and judge.size == 64
    plain = np.full((2, 128, 128, 3), 255, np.uint8)
    plain[0, 32:-32, 32:-32], plain[1, 32:-32, 32:-32] = (20, 20, 220), (220, 20, 20)  # larger: reduced by area
    features, scores = judge(plain)
    assert features.shape == (2, FEATURES) and scores.argmax(1).tolist() == [0, 2]
    (tmp_path / "plain").touch()
    assert (judged / "classifier.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_judge_that_is_none_is_named(tmp_path):
    with pytest.raises(ValueError, match="train classifier makes one"):
        load_judge(tmp_path)
    (tmp_path / "classifier.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="no classifier of drawings"):
        load_judge(tmp_path)


def test_prompts_come_with_pictures_of_what_they_say():
    records = [Drawing("apple", "noto"), Drawing("pear", "noto")]
    pictures = RNG(0).integers(0, 256, (2, 16, 16, 4), np.uint8)
    found = prompts_of(pictures, records, [0, 1], 5, seed=0)
    assert all(n in t for n, t in zip(found.names, found.texts, strict=True)) and found.pairs == 2
    assert found.names[:2] in (("apple", "pear"), ("pear", "apple")) and found.pictures[0].shape == (16, 16, 3)
    assert found.texts == prompts_of(pictures, records, [0, 1], 5, seed=0).texts


def test_reference_pictures_keep_their_proportions(tmp_path):
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, 40:80] = 255  # its middle square is white
    Image.fromarray(wide).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a white square")
    (real,) = read_sets(EvaluateConfig(reference=tmp_path))[0]["reference"].pictures
    assert real.shape == (256, 256, 3) and real[:, 24:-24].min() == 255


def test_a_reference_of_several_captions_a_picture_holds_each_picture_once(tmp_path):
    lines = []
    for i in range(6):
        Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(tmp_path / f"{i}.png")
        lines += [json.dumps({"file_name": f"{i}.png", "text": f"{i} {word}"}) for word in "abcde"]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))

    def found(**changes):
        return read_sets(EvaluateConfig(reference=tmp_path, **changes))[0]["reference"]

    whole = found()
    assert sorted(text[0] for text in whole.texts) == list("012345")
    assert [int(p[0, 0, 0]) for p in whole.pictures] == [40 * int(text[0]) for text in whole.texts]
    assert whole.texts == found().texts
    assert {text for seed in range(30) for text in found(seed=seed).texts} == {
        f"{i} {w}" for i in range(6) for w in "abcde"
    }
    few = [found(number=2, seed=seed).texts for seed in range(30)]
    assert all(len({text[0] for text in texts}) == 2 for texts in few)
    assert {text[0] for texts in few for text in texts} == set("012345")  # not the first by name


class BlackAtTimes:
    """Makes grey pictures; those that its safety checker does not like are black."""

    safety_checker = "there"

    def __call__(self, texts, generator, **options):
        flagged = ["bad" in text for text in texts]
        images = np.stack([np.full((64, 64, 3), 0.0 if bad else 0.5, np.float32) for bad in flagged])
        return SimpleNamespace(images=images, nsfw_content_detected=flagged)


def test_what_is_drawn_is_kept_in_bytes():
    config = EvaluateConfig(batch=4)
    tracemalloc.start()
    made, _ = draw(BlackAtTimes(), ["a"] * 400, list(range(400)), 1, config)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    whole = 400 * 64 * 64 * 3
    assert len(made) == 400 and {p.dtype for p in made} == {np.dtype(np.uint8)} and made[0][0, 0, 0] == 128
    assert most < 1.5 * whole


def test_pictures_that_a_safety_checker_made_black_are_told():
    sets = {"seen": Prompts(("a", "bad", "b"), ()), "held-out": Prompts(("bad",), ())}
    results, made = measure(BlackAtTimes(), sets, None, 1, EvaluateConfig(diversity=0))
    assert results == {"seen n": 3, "held-out n": 1, "black by the safety checker": 2} and len(made) == 1
    results, _ = measure(BlackAtTimes(), sets, None, 1, EvaluateConfig(diversity=2))
    assert results["black by the safety checker"] == 12
    free = BlackAtTimes()
    free.safety_checker = None
    assert "black by the safety checker" not in measure(free, sets, None, 1, EvaluateConfig(diversity=0))[0]


def test_the_whole_command_on_a_pack(pack, judged, tmp_path, capsys):
    options = {"prompts": 4, "steps": (1, 2), "schedulers": ("DDIM",), "diversity": 1, "device": "cpu"}
    config = EvaluateConfig(pack, judged, **options, out=tmp_path / "r.json", sheet=tmp_path / "s.png")
    assert main(config) == 0
    results = json.loads((tmp_path / "r.json").read_text())
    assert list(results) == ["DDIM, 1 steps", "DDIM, 2 steps"]
    values = results["DDIM, 2 steps"]
    assert values["held-out n"] == 4 and values["held-out pairs"] == 3 and values["seen pairs"] == 4
    assert values["prompts with ten different pictures"] == 1.0 and values["judge's FID"] > 0
    assert capsys.readouterr().out.count("|") > 30
    assert main(EvaluateConfig()) == 2 and "either --pack" in capsys.readouterr().err


def test_the_guidance_is_the_models_own_unless_told(tmp_path):
    class Recording:
        config = {"_name_or_path": str(tmp_path)}  # noqa: RUF012

        def __call__(self, texts, guidance_scale=7.5, **options):
            self.guidance = guidance_scale
            return SimpleNamespace(images=np.zeros((len(texts), 4, 4, 3)))

    def drawn(**options) -> float:
        pipeline = Recording()
        draw(pipeline, ["a cat"], [0], 1, EvaluateConfig(model=str(tmp_path), **options))
        return pipeline.guidance

    assert drawn() == 7.5
    (tmp_path / "guidance.json").write_text('{"guidance_scale": 4.0}')
    assert drawn() == 4.0 and drawn(guidance=1.0) == 1.0


def test_offload_reaches_the_model(pack, capsys):
    assert main(EvaluateConfig(pack, prompts=1, device="cpu", offload="model")) == 2
    assert "offload is 'model', which needs an accelerator" in capsys.readouterr().err


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """A tiny CLIP with random weights."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    text = CLIPTextConfig(vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                          num_attention_heads=2, max_position_embeddings=16, eos_token_id=1)  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16
    )
    sizes = {"text_config": text.to_dict(), "vision_config": vision.to_dict(), "projection_dim": 8}
    CLIPModel(CLIPConfig(**sizes)).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    words = {"<s>": 0, "</s>": 1, "red": 2, "blue": 3}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<s>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="</s>", eos_token="</s>").save_pretrained(folder)
    return folder


def test_clip_scores_are_cosines_of_the_real_library(clip):
    pictures = RNG(0).integers(0, 256, (5, 40, 40, 3), np.uint8)
    scores = [clip_score([p], ["red"], str(clip)) for p in pictures]
    assert all(0 <= s <= 100 for s in scores) and len(set(scores)) > 1
    assert clip_score(list(pictures), ["red"] * 5, str(clip), batch=2) == pytest.approx(np.mean(scores), abs=1e-3)
    with pytest.raises(ValueError, match="no CLIP model"):
        clip_score([], [], "nobody/nothing")


def test_a_clip_model_that_fails_without_a_word_is_named(monkeypatch):
    def failing(*arguments, **options):
        raise OSError

    monkeypatch.setattr(CLIPModel, "from_pretrained", failing)
    with pytest.raises(ValueError, match="silent is no CLIP model that can be loaded: OSError"):
        load_clip("silent")


def test_any_model_against_a_folder_of_captioned_pictures(clip, tmp_path, capsys):
    for i in range(4):
        Image.fromarray(RNG(i).integers(0, 256, (50, 50, 3), np.uint8)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text("red")
    config = EvaluateConfig(reference=tmp_path, model=str(ldm.BUNDLED), clip=str(clip), steps=(1,), diversity=0)
    assert main(config) == 0
    assert "CLIP score" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": (4, 0)}, "steps is (4, 0); it must be 1 or more"),
        ({"batch": 0}, "batch is 0"),
        ({"sheet": Path("/nowhere/a.png")}, "/nowhere/a.png could not be written"),
        ({"sheet": Path("a.gif")}, "a sheet is a .png, .jpg or .webp file"),
        ({"out": Path("/")}, "/ could not be written"),
        ({"device": "tpu"}, "device is 'tpu', which cannot be used"),
        ({"pack": Path("none")}, "No such file"),
        ({"schedulers": ("DDIM", "foo")}, "scheduler is 'foo'"),
        ({"clip": "nobody/nothing"}, "nobody/nothing is no CLIP model"),
        ({"inception": Path("none")}, "none does not exist; it must be torch-fidelity's"),
        ({"pack": None}, "give either --pack, with --judge, or --reference"),
        (
            {"pack": None, "reference": Path(), "judge": Path()},
            "a judge names the drawings of a pack: leave --judge out",
        ),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2_before_the_work(pack, changes, message, capsys):
    assert main(replace(EvaluateConfig(pack, prompts=1, steps=(1,), diversity=0), **changes)) == 2
    error = capsys.readouterr().err
    last = error.splitlines()[-1]
    assert last.startswith("ldm.evaluate: ") and message in last and "of 1 pictures" not in error


def test_a_set_too_small_to_be_compared_is_named_before_the_work(pack, judged, capsys):
    assert main(EvaluateConfig(pack, judged, prompts=3, device="cpu")) == 2
    error = capsys.readouterr().err
    assert error.endswith("ldm.evaluate: 3 pictures cannot be compared as a set; at least 4 are needed\n")
    assert "of 3 pictures" not in error


def test_finished_columns_outlast_one_that_fails(pack, tmp_path, capsys):
    config = EvaluateConfig(pack, prompts=1, steps=(1, 5000), diversity=0, device="cpu", schedulers=("DDIM",))
    assert main(replace(config, out=tmp_path / "r.json")) == 2
    assert "5000" in capsys.readouterr().err
    assert list(json.loads((tmp_path / "r.json").read_text())) == ["DDIM, 1 steps"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "out of memory; a smaller --batch takes less"),
        (SafetensorError("I/O error"), "I/O error"),
    ],
)
def test_what_ends_the_work_is_one_line_and_exit_code_2(error, message, pack, monkeypatch, capsys):
    def failing(*arguments):
        raise error

    monkeypatch.setattr(ldm.evaluate, "measure", failing)
    assert main(EvaluateConfig(pack, prompts=1, steps=(1,), diversity=0, device="cpu")) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"ldm.evaluate: {message}"


def test_tables_have_a_column_for_each_sampler():
    text = table({"a": {"FID": 1.0, "KID": 2.0}, "b": {"FID": 3.0, "KID": 4.0}})
    assert text.splitlines()[0] == "| | a | b |" and text.splitlines()[2] == "| FID | 1 | 3 |"


def test_images_are_scaled_to_the_range_of_the_network():
    images = to_images(np.full((1, 8, 8, 3), 255, np.uint8), 4)
    assert images.shape == (1, 3, 4, 4) and float(images.max()) == 1.0
