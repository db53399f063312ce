"""Small networks and real servers that several tests share."""

import os
from collections.abc import Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

from sr3.pipeline import SR3Pipeline
from sr3.train import Preset, build
from tests.jobs_servers import S3, Postgres

SMALL = Preset(
    channels=16,
    num_blocks=2,
    context_channels=16,
    base_channels=16,
    multipliers=(1, 2),
    unet_blocks=1,
    temperature=1.0,
    overestimate=1.0,
    ceiling=1.0,
)


@pytest.fixture(scope="session")
def small_pipeline() -> SR3Pipeline:
    """An SR3 pipeline with random weights, none of them zero: what it makes depends on all of its inputs."""
    torch.manual_seed(0)
    pipeline = build(SMALL)
    for module in (pipeline.encoder, pipeline.unet):
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A Postgres cluster; skipped where Debian's is not installed."""
    server = Postgres()
    yield server
    server.close()


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """moto's S3 server, with the buckets `pictures` and `library`."""
    server = S3()
    server.make_bucket("pictures")
    server.make_bucket("library")
    yield server
    server.close()
