"""What a request may say and what an error looks like, as the OpenAPI page shows them."""

from enum import IntEnum
from typing import Annotated, Any, Literal

import annotated_types
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, create_model

from sr3.images import VIEWS

# Tabs and line breaks are text; the other control characters are not, and break PNG text and XML.
_NO_CONTROL = r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffe\uffff]*$"

EXAMPLES: dict[str, Any] = {
    "short": {"summary": "A prompt is enough", "value": {"prompt": "a red apple"}},
    "seed": {"summary": "The same seed, the same bytes", "value": {"prompt": "a red apple", "seed": 7}},
    "full": {
        "summary": "Every dial",
        "value": {
            "prompt": "a cat face",
            "negative_prompt": "blurry",
            "seed": 4294967295,
            "steps": 30,
            "guidance_scale": 5.0,
            "sr_steps": 0,
            "aug_level": 0.0,
        },
    },
}


class Upscale(IntEnum):
    """How many times wider and higher than the base model's the delivered picture is."""

    X1 = 1
    X4 = 4
    X16 = 16


class GenerateQuery(BaseModel):
    """The query of `POST /generate`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    upscale: Upscale = Field(
        default=Upscale.X4,
        description="1: the base picture; 4: enlarged once; 16: enlarged twice",
        examples=[4],
    )


class UpscaleQuery(BaseModel):
    """The options of `POST /upscale`, in the query or as fields of the form."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    factor: Literal["4", "16"] = Field(default="4", description="how many times wider and higher", examples=["4"])
    seed: int | None = Field(default=None, ge=0, le=2**32 - 1, description="null: drawn and reported", examples=[7])
    steps: int | None = Field(default=None, ge=0, le=50, description="0 is the faithful one, more add texture")
    scheduler: str | None = Field(default=None, min_length=1, max_length=40, description="by name", examples=["DDIM"])
    aug_level: float | None = Field(
        default=None, ge=0, lt=1, description="noise added first, so that more is invented; none: 0", examples=[0.0]
    )
    consistency: int | None = Field(
        default=None,
        ge=0,
        le=100,
        description="how often the result is made to reduce to the picture again; none: 0 for JPEG, WebP, with an "
        "aug_level and for the second pass of 16 times, else 2",
    )
    views: int = Field(
        default=1,
        ge=1,
        le=VIEWS,
        description="of how many views of the picture the estimate is the mean (test-time augmentation): slower, "
        "closer to the picture",
        examples=[1],
    )
    format: Literal["png", "jpeg", "webp", "tiff"] | None = Field(
        default=None, description="of the file; none: what Accept names, else the picture's own", examples=["png"]
    )
    quality: int = Field(default=95, ge=1, le=100, description="of JPEG and WebP", examples=[95])
    metadata: Literal["full", "none"] = Field(default="full", description="whether the file says how it was made")


class GenerateBody(BaseModel):
    """The body of `POST /generate`. What is left out, or null, takes the server's default."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    prompt: str = Field(description="what to draw", examples=["a red apple"])
    negative_prompt: str = Field(default="", description="what to keep away from", examples=["blurry"])
    seed: int | None = Field(
        default=None,
        ge=0,
        le=2**32 - 1,
        description="same seed, same picture; null: drawn and reported. Further pictures take the seeds after it",
        examples=[7],
    )
    num_images: int = Field(default=1, ge=1, le=8, description="how many pictures; several are answered as JSON")
    steps: int | None = Field(default=None, ge=1, le=100, description="steps of the base model", examples=[20])
    guidance_scale: float | None = Field(
        default=None,
        ge=0,
        le=20,
        description="how closely to follow the prompt",
        examples=[5.0],
    )
    sr_steps: int | None = Field(
        default=None,
        ge=0,
        le=50,
        description="steps of each enlargement; 0 is the faithful one, more add texture",
        examples=[4],
    )
    aug_level: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="noise added before enlarging, so that more is invented",
        examples=[0.02],
    )
    scheduler: str | None = Field(
        default=None, min_length=1, max_length=40, description="of the base model, by name", examples=["DDIM"]
    )
    width: int | None = Field(
        default=None,
        ge=8,
        le=4096,
        description="of the base picture, which has max_base_pixels of /info at most",
        examples=[64],
    )
    height: int | None = Field(
        default=None,
        ge=8,
        le=4096,
        description="of the base picture, which has max_base_pixels of /info at most",
        examples=[64],
    )
    sr_scheduler: str | None = Field(
        default=None, min_length=1, max_length=40, description="of each enlargement, by name", examples=["DDIM"]
    )
    format: Literal["png", "jpeg", "webp", "tiff"] | None = Field(
        default=None, description="of the file; null: what Accept names, else png", examples=["png"]
    )
    quality: int = Field(default=95, ge=1, le=100, description="of JPEG and WebP", examples=[95])
    metadata: Literal["full", "none"] = Field(
        default="full", description="whether the file says how it was made", examples=["full"]
    )


def generate_body(max_prompt_chars: int, max_images: int = 8) -> type[GenerateBody]:
    """`GenerateBody` for prompts of 1 to `max_prompt_chars` characters, counted without outer blanks, and at most
    `max_images` pictures."""

    def text(min_length: int) -> Any:
        limits = StringConstraints(
            strip_whitespace=True, min_length=min_length, max_length=max_prompt_chars, pattern=_NO_CONTROL
        )
        return Annotated[str, limits]

    fields = GenerateBody.model_fields
    return create_model(
        "GenerateBody",
        __base__=GenerateBody,
        __doc__=GenerateBody.__doc__,
        prompt=(text(1), fields["prompt"]),
        negative_prompt=(text(0), fields["negative_prompt"]),
        num_images=(Annotated[int, annotated_types.Le(max_images)], fields["num_images"]),
    )


class OpenAIBody(BaseModel):
    """The body of OpenAI's `POST /v1/images/generations`, with a `seed`. What this server has no use for is taken
    and ignored: `model`, `user`, `quality`, `style`, `moderation`, and a `background` that is not transparent."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    prompt: str = Field(max_length=100_000, pattern=_NO_CONTROL, description="what to draw", examples=["a red apple"])
    n: int | None = Field(default=1, ge=1, le=8, description="how many pictures", examples=[1])
    size: str | None = Field(
        default="auto",
        description="auto is the base picture ×4; else WIDTHxHEIGHT, 1, 4 or 16 times what the base model draws",
        examples=["256x256"],
    )
    output_format: Literal["png", "jpeg", "webp"] | None = Field(default="png", description="of the files")
    output_compression: int | None = Field(default=None, ge=0, le=100, description="the quality of JPEG and WebP")
    response_format: Literal["b64_json"] | None = Field(default=None, description="b64_json; there are no URLs")
    seed: int | None = Field(default=None, ge=0, le=2**32 - 1, description="an extension of this server")
    stream: bool | None = Field(default=False, description="answer with server-sent events")
    partial_images: int | None = Field(default=None, ge=0, le=3, description="most previews in a stream")
    background: Literal["auto", "opaque"] | None = None
    model: str | None = Field(default=None, max_length=200)
    user: str | None = Field(default=None, max_length=200)
    quality: str | None = Field(default=None, max_length=20)
    style: str | None = Field(default=None, max_length=20)
    moderation: str | None = Field(default=None, max_length=20)


class FieldError(BaseModel):
    """One field that was refused."""

    location: str = Field(description="body, query or header", examples=["body"])
    field: str = Field(description="the field's name; empty for the body as a whole", examples=["steps"])
    message: str = Field(description="what is wrong", examples=["Input should be less than or equal to 100"])
    got: str | None = Field(default=None, description="what was sent, as JSON, shortened", examples=["500"])
    accepted: str | None = Field(
        default=None, description="what is accepted", examples=["an integer from 1 to 100 or null"]
    )


class ProblemBody(BaseModel):
    """An error, as RFC 9457 (application/problem+json) has it."""

    type: Literal["about:blank"] = Field(description="always about:blank: the status says what kind it is")
    title: str = Field(description="the status in words", examples=["Unprocessable Content"])
    status: int = Field(description="the HTTP status", examples=[422])
    detail: str = Field(description="what happened, in a sentence")
    request_id: str = Field(description="the same as the X-Request-Id header")
    errors: list[FieldError] | None = Field(default=None, description="for 422: each field that was refused")
