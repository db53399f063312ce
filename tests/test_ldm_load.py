"""Any family of diffusers through `ldm.load` and the service's cascade; what is refused, and memory."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.hooks import CpuOffload
from diffusers import (
    AutoencoderKLQwenImage,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    IFPipeline,
    QwenImagePipeline,
)
from safetensors.torch import load_file, save_file

import ldm
import sr3
from ldm.loading import ModelError, _on, load
from ldm.memory import GIB, check_memory, count_numbers, count_parts, free_memory
from ldm.preview import NoPreview, latent_map, preview
from ldm.schedulers import accepted, with_scheduler
from service.cascade import DiffusersCascade
from service.requests import GenerateRequest, GenerateResult, InvalidRequest
from service.settings import Settings
from service.upscale import Progress
from tests.ldm_families import FAMILIES, build

ROOT = Path(__file__).parent.parent
LARGE = ("pixart_sigma", "sana", "sana_sprint")  # their pictures are 256 and 512 pixels wide, however small they are


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    for name in FAMILIES:
        build(name).save_pretrained(root / name)
    return {name: root / name for name in FAMILIES}


@pytest.fixture(scope="module")
def enlarger():
    return sr3.load(device="cpu")


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_runs_the_whole_cascade(name, folders, enlarger):
    base = load(folders[name], "cpu", vae_tiling=True, attention_slicing=name.startswith("stable_diffusion"))
    cascade = DiffusersCascade(base, enlarger, Settings(base_model=str(folders[name])))
    seen: list[Progress] = []
    upscale = 1 if name in LARGE else 4
    asked = GenerateRequest("a red apple", seed=3, upscale=upscale, steps=2, sr_steps=0)
    made = cascade.generate([asked], seen.append)[0]
    width, height = made.used.base_size
    assert made.image.shape == (upscale * height, upscale * width, 3) and made.image.dtype == np.uint8
    first, again, other = (
        cascade.generate([GenerateRequest("a cat", s, upscale=1, steps=2)])[0].image for s in (3, 3, 4)
    )
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert list(dict.fromkeys((each.step, each.steps) for each in seen if each.stage == "base")) == [
        (0, 2),
        (1, 2),
        (2, 2),
    ]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_work_of_every_family_ends_at_the_next_block(name, folders, enlarger):
    base = load(folders[name], "cpu")
    cascade = DiffusersCascade(base, enlarger, Settings(base_model=str(folders[name])))
    upscale = 1 if name in LARGE else 4
    request = GenerateRequest("a red apple", seed=3, upscale=upscale, steps=1, sr_steps=1)
    parts = [
        part for each in (base, enlarger) for part in each.components.values() if isinstance(part, torch.nn.Module)
    ]
    layers = [each for part in parts for each in part.modules() if not any(each.children()) and list(each.parameters())]
    ran, looks, end = [], [], None

    def look(progress: Progress) -> None:
        looks.append(len(ran))
        if len(looks) == end:
            raise KeyError("enough")

    counting = [layer.register_forward_hook(lambda *call: ran.append(1)) for layer in layers]
    try:
        cascade.generate([request], look)
        stretches = np.diff([0, *looks, len(ran)])
        assert len(ran) > 50 and max(stretches) <= 16, "layers of the longest stretch that nothing ends"
        before = looks[len(looks) // 2]
        ran, looks, end = [], [], len(looks) // 2 + 1
        with pytest.raises(KeyError, match="enough"):
            cascade.generate([request], look)
        assert len(ran) == before, "nothing runs after it"
    finally:
        for each in counting:
            each.remove()
    assert not any(each._forward_pre_hooks for part in parts for each in part.modules())


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_takes_its_schedulers_and_shows_previews(name, folders):
    shared = load(folders[name], "cpu")
    for scheduler in (None, *accepted(shared)):
        shown = []

        def tell(pipeline, step, timestep, values, shown=shown):
            shown.append(preview(pipeline, values["latents"]))
            return values

        listens = {} if name == "pixart_sigma" else {"callback_on_step_end": tell}
        pipeline = with_scheduler(shared, scheduler)
        draw = torch.Generator().manual_seed(0)
        image = pipeline("a cat", num_inference_steps=2, generator=draw, output_type="np", **listens).images
        assert np.isfinite(image).all(), scheduler
        if listens:
            assert len(shown) >= 2 and shown[-1].shape[0] == 1 and shown[-1].shape[3] == 3
        else:
            assert pipeline.scheduler.last_estimate.isfinite().all()


def test_a_latent_consistency_model_takes_its_own_kind_of_steps_and_no_more_of_them_than_it_knows(folders, enlarger):
    base = load(folders["latent_consistency"], "cpu")
    cascade = DiffusersCascade(base, enlarger, Settings())
    assert cascade.info().schedulers == ("LCM",)
    for scheduler in (None, "lcm"):
        request = GenerateRequest("a cat", 1, upscale=1, steps=50, scheduler=scheduler)
        made, refused = cascade.generate([request])[0], cascade.generate([replace(request, steps=51)])[0]
        assert isinstance(made, GenerateResult)
        assert isinstance(refused, InvalidRequest) and refused.field == "steps" and "at most 50" in str(refused)
    (refused,) = cascade.generate([GenerateRequest("a cat", 1, upscale=1, steps=2, scheduler="DDIM")])
    assert isinstance(refused, InvalidRequest) and "this model takes LCM" in str(refused)


def test_noise_of_another_kind_takes_its_own_scheduler_alone(folders, enlarger):
    base = load(folders["edm"], "cpu")
    assert accepted(base) == ()
    for name in ("Euler", "DDIM"):
        with pytest.raises(ValueError, match="takes no scheduler but its own"):
            with_scheduler(base, name)
    (refused,) = DiffusersCascade(base, enlarger, Settings()).generate([GenerateRequest("a", 1, scheduler="DDIM")])
    assert isinstance(refused, InvalidRequest) and "takes its own alone" in str(refused)


@pytest.mark.parametrize(("width", "height"), [(32, 16), (64, 16), (None, 16), (None, None)])
def test_previews_of_packed_latents_have_the_pictures_shape(width, height, folders, enlarger):
    cascade = DiffusersCascade(load(folders["flux"], "cpu"), enlarger, Settings(base_model=str(folders["flux"])))
    seen: list[Progress] = []
    asked = GenerateRequest("a cat", 1, upscale=1, steps=1, width=width, height=height)
    (made,) = cascade.generate([asked], seen.append)
    assert seen[-1].preview is not None
    assert [each.shape for each in seen[-1].preview()] == [made.image.shape]


def test_pickled_weights_are_refused(folders, tmp_path):
    folder = copied(folders["stable_diffusion"], tmp_path)
    for part, name in (("unet", "diffusion_pytorch_model"), ("text_encoder", "pytorch_model")):
        (file,) = (folder / part).glob("*.safetensors")
        tensors = load_file(file)
        torch.save(tensors, folder / part / f"{name}.bin")
        file.unlink()
        with pytest.raises(ModelError, match="cannot be loaded"):
            load(folder, "cpu")
        save_file(tensors, file, metadata={"format": "pt"})
    load(folder, "cpu")


@pytest.mark.parametrize(
    ("family", "part"),
    [("stable_diffusion", "unet"), ("stable_diffusion", "vae"), ("stable_diffusion", "text_encoder"),
     ("flux", "transformer")],
)  # fmt: skip
def test_weights_that_lack_tensors_are_named(family, part, folders, tmp_path):
    folder = copied(folders[family], tmp_path)
    (file,) = (folder / part).glob("*.safetensors")
    tensors = load_file(file)
    gone = sorted(tensors)[3:5]
    save_file({name: value for name, value in tensors.items() if name not in gone}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"cannot be loaded: {part} lacks 2 tensors, {gone[0]} first"):
        load(folder, "cpu")


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / folder.name))


def test_nothing_is_downloaded_by_default(tmp_path):
    """With a hub of our own on loopback, which has nothing, and is asked for it only where downloads are allowed."""
    asked = []

    class Hub(BaseHTTPRequestHandler):
        def answer(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_GET = do_HEAD = answer

        def log_message(self, *line: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        where = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        for allowed in (False, True):
            code = f"import ldm; ldm.load('nobody/nothing', 'cpu', allow_download={allowed})"
            environment = {**os.environ, **where, "NO_PROXY": "127.0.0.1"}
            command = [sys.executable, "-c", code]
            ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=ROOT)
            said = "cannot be fetched from the hub: .*404" if allowed else "is not in the hub's cache on this machine"
            assert re.search(f"ModelError: nobody/nothing {said}", ran.stderr)
            assert any("nobody/nothing" in path for path in asked) == allowed
        hub.shutdown()


def test_a_model_that_does_not_fit_is_refused_before_it_is_read(folders, tmp_path):
    with pytest.raises(
        ModelError, match=r"its weights take 0\.0 GiB as float32 \(\w+ 0\.0\) and cpu has 0\.0 GiB free"
    ):
        load(folders["flux"], "cpu", free=lambda device: 1000)
    load(folders["flux"], "cpu", free=lambda device: 100 * 2**20)
    # A large model in headers alone: 12 billion numbers of transformer, 4.7 of T5, as Flux has.
    big = tmp_path / "big"
    for part, numbers in (("transformer", 12_000_000_000), ("text_encoder_2", 4_700_000_000)):
        (big / part).mkdir(parents=True)
        header = json.dumps({"w": {"dtype": "BF16", "shape": [numbers], "data_offsets": [0, 2 * numbers]}}).encode()
        file = big / part / "model.safetensors"
        file.write_bytes(len(header).to_bytes(8, "little") + header)
        (big / part / "model.fp16.safetensors").write_bytes(file.read_bytes())
    parts = {
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
    }
    (big / "model_index.json").write_text(
        json.dumps({"_class_name": "FluxPipeline", **parts, "safety_checker": [None, None]})
    )
    assert count_parts(big) == {"transformer": {"BF16": 12_000_000_000}, "text_encoder_2": {"BF16": 4_700_000_000}}
    room = {"cuda": 24 * GIB, "cpu": 64 * GIB}
    card, bf16 = torch.device("cuda"), torch.bfloat16

    def check(dtype: torch.dtype, offload: str) -> None:
        check_memory(big, dtype, card, offload, lambda device: room[device.type])

    with pytest.raises(
        ValueError, match=r"31\.1 GiB as bfloat16 \(transformer 22\.4\) and cuda has 24\.0.*use offload=model .*, a sm"
    ):
        check(bf16, "none")
    check(bf16, "model")
    with pytest.raises(
        ValueError, match=r"44\.7 GiB as float32 .*cuda has 24\.0 .*use a narrower dtype than float32, offload=seq"
    ):
        check(torch.float32, "model")
    check(torch.float32, "sequential")
    room["cpu"] = 16 * GIB
    with pytest.raises(ValueError, match=r"31\.1 GiB .* cpu has 16\.0"):
        check(bf16, "sequential")
    room["cuda"] = 48 * GIB
    check(bf16, "none")  # as it stands in the files, which the card is filled from
    with pytest.raises(ValueError, match=r"31\.1 GiB as float16 .* cpu has 16\.0 .*use the dtype of its files, a sm"):
        check(torch.float16, "none")


def test_settings_that_cannot_be_are_named(folders):
    with pytest.raises(ModelError, match=r"offload is 'some'; it must be one of none, model, sequential"):
        load(folders["flux"], "cpu", offload="some")
    with pytest.raises(ModelError, match="needs an accelerator"):
        load(folders["flux"], "cpu", offload="model")


def test_an_offloaded_model_draws_the_same_request_after_request(folders, enlarger):
    """Its parts' hooks are taken off and put on again at the end of each call, of each copy with another scheduler."""
    cascades = [
        DiffusersCascade(_on(load(folders["flux"], "cpu"), torch.device("cpu"), offload), enlarger, Settings())
        for offload in ("none", "model")
    ]
    for scheduler in (None, "UniPC", None):
        request = GenerateRequest("a cat", 3, upscale=1, steps=1, scheduler=scheduler, width=16, height=16)
        plain, offloaded = (each.generate([request])[0].image for each in cascades)
        assert np.abs(plain.astype(int) - offloaded).max() <= 2


def test_an_offloaded_network_leaves_the_device_when_the_work_is_stopped(folders, enlarger, monkeypatch):
    """Or the next request's text encoders would want room beside it."""
    resident, most = set(), []

    def arrive(hook: CpuOffload, module: torch.nn.Module, *inputs: Any, **options: Any) -> tuple[Any, Any]:
        if hook.prev_module_hook is not None and hook.prev_module_hook.model in resident:
            hook.prev_module_hook.offload()
        resident.add(module)
        most.append(len(resident))
        return inputs, options

    def leave(hook: CpuOffload, module: torch.nn.Module) -> torch.nn.Module:
        resident.discard(module)
        return module

    monkeypatch.setattr(CpuOffload, "pre_forward", arrive)
    monkeypatch.setattr(CpuOffload, "init_hook", leave)
    base = _on(load(folders["flux"], "cpu"), torch.device("cpu"), "model")
    resident.clear()
    cascade = DiffusersCascade(base, enlarger, Settings())

    def stop(progress: Progress) -> None:
        if progress.step:
            raise InterruptedError

    request = GenerateRequest("a cat", 3, upscale=1, steps=2, width=16, height=16)
    with pytest.raises(InterruptedError):
        cascade.generate([request], stop)
    assert most and not resident
    cascade.generate([request])
    assert max(most) == 1


def test_a_model_without_previews_is_offloaded_all_the_same():
    """Qwen-Image's autoencoder is that of a video model, and DeepFloyd IF has none."""
    vae = AutoencoderKLQwenImage(8, 4, [1, 2, 4], 1, temperal_downsample=[False, True])
    none = {"tokenizer": None, "text_encoder": None}
    for pipeline in (
        QwenImagePipeline(FlowMatchEulerDiscreteScheduler(), vae, transformer=None, **none),
        IFPipeline(
            **none,
            unet=None,
            scheduler=DDPMScheduler(),
            safety_checker=None,
            feature_extractor=None,
            watermarker=None,
            requires_safety_checker=False,
        ),
    ):
        assert _on(pipeline, torch.device("cpu"), "model") is pipeline
        for _ in range(2):
            with pytest.raises(NoPreview, match=r"AutoencoderKLQwenImage: .|IFPipeline has no autoencoder"):
                latent_map(pipeline)


def test_headers_are_counted_and_other_files_named(tmp_path):
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(())}, tmp_path / "x.safetensors")
    assert count_numbers(tmp_path / "x.safetensors") == {"F32": 16}
    (tmp_path / "y.safetensors").write_bytes(b"not one of them")
    with pytest.raises(ValueError, match="not a safetensors file"):
        count_numbers(tmp_path / "y.safetensors")
    assert 10 * 2**20 < free_memory(torch.device("cpu")) < 2**50
    (tmp_path / "model_index.json").write_text('{"_class_name": "Any", "unet": [], "vae": [null, null]}')
    assert count_parts(tmp_path) == {}
    assert sum(each["F16"] for each in count_parts(ldm.BUNDLED).values()) > 15e6
