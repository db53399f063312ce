"""The routes of batch jobs: make, watch, cancel, take up again, forget; ZIP archives in and out."""

import asyncio
import logging
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from enum import IntEnum
from typing import IO, Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Body, Depends, FastAPI, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from sqlalchemy.exc import SQLAlchemyError

from service.archive import BadArchive, NoArchive, TooLarge, packed, unpack
from service.crew import COMMAND
from service.desk import Desk
from service.jobs import ACTIVE, Conflict, JobSpec, JobStatus
from service.openapi import TOO_OFTEN, TOO_SLOW, problem_responses
from service.problems import Problem, bad_fields, shown
from service.schemas import FieldError
from service.security import authenticated, counted, owner
from service.settings import Settings
from service.storage import NotAllowed, StorageError, open_place
from service.upscale import UpscaleOptions
from sr3.images import VIEWS

_log = logging.getLogger("service.jobs")
_EVERY = 0.5
_T = TypeVar("_T")
Owner = Annotated[str | None, Depends(owner)]


class Factor(IntEnum):
    """How many times wider and higher a result is."""

    X4 = 4
    X16 = 16


def _in_own_case(name: object) -> object:
    """A scheduler's or a format's name as it is written here, as `POST /upscale` takes both."""
    known = ("DDIM", "DDPM", "DPMSolver++", "Euler", "LMS", "UniPC", "PNG", "JPEG", "WEBP", "TIFF")
    return {each.lower(): each for each in known}.get(name.lower(), name) if isinstance(name, str) else name


class JobSettings(BaseModel):
    """How the pictures of a job are enlarged and chosen; the same as the flags of `python -m service.batch`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    factor: Factor = Field(default=Factor.X4, description="how many times wider and higher", examples=[4])
    steps: int | None = Field(default=None, ge=0, le=50, description="0: faithful; more add texture", examples=[4])
    scheduler: Annotated[
        Literal["DDIM", "DDPM", "DPMSolver++", "Euler", "LMS", "UniPC"] | None, BeforeValidator(_in_own_case)
    ] = Field(default=None, description="null: the model's own", examples=["DDIM"])
    aug_level: float | None = Field(default=None, ge=0, lt=1, description="noise smoothed away", examples=[0.0])
    consistency: int | None = Field(
        default=None,
        ge=0,
        le=100,
        description="how often a result is made to reduce to its picture; null: 0 for JPEG and WebP, else 2",
        examples=[2],
    )
    views: int = Field(default=1, ge=1, le=VIEWS, description="test-time augmentation: slower, closer to the picture")
    format: Annotated[Literal["PNG", "JPEG", "WEBP", "TIFF"] | None, BeforeValidator(_in_own_case)] = Field(
        default=None, description="null: each picture's own; another adds its suffix to the name", examples=["PNG"]
    )
    quality: int = Field(default=95, ge=1, le=100, description="of JPEG and WebP", examples=[95])
    seed: int = Field(default=0, ge=0, le=2**32 - 1, description="each picture's follows from it", examples=[0])
    glob: str | None = Field(
        default=None, max_length=200, description="which files; null: pictures", examples=["*.jpg"]
    )


class JobBody(JobSettings):
    """The body of `POST /jobs`."""

    input: str = Field(min_length=1, max_length=2000, description="a folder, or s3://, gs://, az://…")
    output: str = Field(min_length=1, max_length=2000, description="another, not inside the input")
    recursive: bool = Field(default=False, description="go into folders below the input")
    overwrite: bool = Field(default=False, description="do again what is there already with these settings")


class JobView(BaseModel):
    """A job as it stands."""

    id: str = Field(description="its id")
    state: Literal["planning", "running", "done", "cancelled", "failed"] = Field(description="where it stands")
    created: float = Field(description="when it was made, seconds since 1970")
    finished: float | None = Field(description="when it ended")
    input: str | None = Field(description="where the pictures are; null: in an archive that was uploaded")
    output: str | None = Field(description="where the results go; null: into the archive that is the result")
    settings: dict[str, Any] = Field(description="as asked for")
    total: int = Field(description="pictures in all")
    done: int = Field(description="pictures enlarged")
    kept: int = Field(description="pictures whose result was there already")
    failed: int = Field(description="pictures that could not be done")
    rate: float | None = Field(description="pictures a second over the last minute")
    seconds_left: float | None = Field(description="how long the rest may take")
    note: str | None = Field(description="what it waits for, or why it failed")
    failures: list[dict[str, Any]] = Field(description="the latest failures, as in the manifest")


_ERRORS = {
    404: "There is no such job, or it is another key's.",
    409: "The job is not in a state for this, has pictures in hand, or another writes to the same output.",
    422: "A field is unknown, out of its range, or a place that the settings do not allow.",
    503: "The database of jobs cannot be used.",
}
_BODY_ERRORS = {400: "The body is not JSON.", 413: "The body is too large.", 415: "The body is not sent as JSON."}
_ZIP_ERRORS = {
    413: "The archive is too large.",
    415: "The body is not a ZIP archive.",
    422: "A field is unknown or out of its range, or the archive is damaged, encrypted, or has a name in it that leads "
    "elsewhere or twice.",
    503: "The database of jobs, or the place of uploads, cannot be used.",
}


def jobs_router(settings: Settings, command: Sequence[str] = COMMAND) -> APIRouter:
    """The routes below /jobs. Their database is opened when first needed; its lifespan looks after the workers."""
    desk = Desk(settings, command)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(_asked, desk.resume, False)
        yield
        await asyncio.to_thread(desk.close)

    router = APIRouter(
        prefix="/jobs",
        tags=["jobs"],
        lifespan=lifespan,
        dependencies=[Depends(authenticated)],
        responses=problem_responses(_ERRORS),
    )
    _add_making(router, desk)
    _add_watching(router, desk)
    _add_steering(router, desk)
    return router


def _add_making(router: APIRouter, desk: Desk) -> None:
    @router.post(
        "",
        status_code=201,
        dependencies=[Depends(counted)],
        responses=problem_responses(TOO_OFTEN | TOO_SLOW | _BODY_ERRORS),
    )
    def make(response: Response, owner: Owner, body: Annotated[JobBody, Body()]) -> JobView:
        """Enlarge every picture of a folder or bucket into another. Workers do it; this answers at once. The job is
        the asking key's: others neither see it nor can do anything to it."""
        spec = _spec(desk.settings, body.input, body.output, body, body.recursive, body.overwrite)
        field = "input"
        try:
            for field in ("input", "output"):
                open_place(getattr(body, field))
            desk.spec_allowed(spec)
        except NotAllowed as error:
            raise _refused(error.field, getattr(body, error.field), str(error)) from error
        except (ValueError, StorageError) as error:
            raise _refused(field, getattr(body, field), str(error)) from error
        return _made(desk, response, _asked(lambda: desk.jobs.create(spec, client=owner)))

    @router.post(
        "/zip",
        status_code=201,
        openapi_extra={"requestBody": {"required": True, "content": {"application/zip": {"schema": _BINARY}}}},
        dependencies=[Depends(counted)],
        responses=problem_responses(TOO_OFTEN | TOO_SLOW | _ZIP_ERRORS),
    )
    async def make_of_zip(
        request: Request, response: Response, owner: Owner, query: Annotated[JobSettings, Query()]
    ) -> JobView:
        """Enlarge every picture of a ZIP archive, which is the body; `result.zip` of the job has the results."""
        limit = desk.settings.max_archive_bytes
        try:
            desk.data_dir.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=desk.data_dir) as file:
                size = 0
                async for part in request.stream():
                    size += len(part)
                    if size > limit:
                        raise Problem(413, f"the archive is larger than this server's {limit} bytes")
                    await asyncio.to_thread(file.write, part)
                await asyncio.to_thread(file.flush)
                id = await asyncio.to_thread(_unpacked, desk, file, query, owner)
        except OSError as error:
            raise Problem(503, f"the archive cannot be stored: {error.strerror or error}") from error
        return await asyncio.to_thread(_made, desk, response, id)


def _add_watching(router: APIRouter, desk: Desk) -> None:
    known = _known(desk)

    @router.get("")
    def all_jobs(owner: Owner, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> list[JobView]:
        """The latest jobs of the asking key, or of everybody where the server has no keys, the newest first, without
        their failures."""
        return [_view(status) for status in _asked(lambda: desk.jobs.all(limit, owner) if desk.begun() else [])]

    @router.get("/{id}")
    def one_job(id: Annotated[str, Depends(known)]) -> JobView:
        """A job as it stands."""
        return _view(_asked(lambda: desk.jobs.status(id)))

    @router.get("/{id}/events", response_class=EventSourceResponse)
    async def events(id: Annotated[str, Depends(known)]) -> AsyncIterator[ServerSentEvent]:
        """The job at once and whenever it changed, as server-sent events, until it is over or forgotten."""
        last: JobView | None = None
        while last is None or last.state in ACTIVE:
            try:
                status: JobStatus | None = await asyncio.to_thread(_asked, lambda: desk.jobs.status(id), False)
            except Problem:  # it was forgotten meanwhile
                return
            if status is not None:  # else the database is away for a while
                view = _view(status)
                if last is None or view.model_dump(exclude=_DRIFTING) != last.model_dump(exclude=_DRIFTING):
                    yield ServerSentEvent(data=view, event="job")
                    last = view
            await asyncio.sleep(_EVERY)

    @router.get("/{id}/result.zip", response_class=StreamingResponse, responses={200: {"content": _ZIP}})
    def result(id: Annotated[str, Depends(known)]) -> StreamingResponse:
        """What the job has made so far, with its manifest, packed as it is sent. The manifest says `"missing": true` of
        what was moved or deleted since."""
        spec = _asked(lambda: desk.jobs.status(id, 0))
        if not spec.upload:
            _asked(lambda: desk.spec_allowed(spec.spec))
        headers = {"Content-Disposition": f'attachment; filename="{id}.zip"'}
        return StreamingResponse(packed(desk.results(id)), media_type="application/zip", headers=headers)


def _add_steering(router: APIRouter, desk: Desk) -> None:
    known = _known(desk)

    @router.post("/{id}/cancel", dependencies=[Depends(counted)], responses=problem_responses(TOO_OFTEN))
    def cancel(id: Annotated[str, Depends(known)]) -> JobView:
        """Stop the job after the pictures in hand. What is done stays."""
        _asked(lambda: desk.jobs.cancel(id))
        return _view(_asked(lambda: desk.jobs.status(id)))

    @router.post("/{id}/retry-failed", dependencies=[Depends(counted)], responses=problem_responses(TOO_OFTEN))
    def retry_failed(id: Annotated[str, Depends(known)]) -> JobView:
        """Try again what failed, and what was left when the job was cancelled; new pictures of the input join."""
        _asked(lambda: desk.jobs.take_up(id))
        desk.wake()
        return _view(_asked(lambda: desk.jobs.status(id)))

    @router.delete("/{id}", status_code=204, response_class=Response)
    def delete(id: Annotated[str, Depends(known)]) -> None:
        """Forget a job that is over. Its pictures stay, but for an uploaded archive's: nobody else knows of those. Such
        a job is kept while a worker has a picture of it in hand, which would be written afterwards."""
        status = _asked(lambda: desk.jobs.status(id, 0))
        if status.upload and status.state not in ACTIVE and not _asked(lambda: desk.at_rest(id)):
            raise Problem(409, f"job {id} still has pictures in hand; try again when they are done")
        _asked(lambda: desk.jobs.delete(id))
        if status.upload:
            desk.upload_place(id).clear()


def _known(desk: Desk) -> Callable[[str, str | None], str]:
    """The dependency of a path's id: Problem 404 before anything is answered where the asker has no such job."""

    def known(id: Annotated[str, Path(max_length=64, description="the job's id")], owner: Owner) -> str:
        if not _asked(desk.begun) or owner not in (None, _asked(lambda: desk.jobs.status(id, 0)).client):
            raise _unknown(id)
        return id

    return known


def _unpacked(desk: Desk, file: IO[bytes], query: JobSettings, owner: str | None) -> str:
    """The id of a job of an archive's pictures. Where none can be made, nothing of them stays."""
    id = uuid.uuid4().hex[:12]
    source, target = desk.upload_place(id, "in"), desk.upload_place(id, "out")
    try:
        unpack(file, source, desk.settings.max_archive_bytes)
        spec = _spec(desk.settings, source.url, target.url, query, True, False)
        return _asked(lambda: desk.jobs.create(spec, True, id, owner))
    except BaseException as error:
        with suppress(StorageError):
            desk.upload_place(id).clear()
        if isinstance(error, BadArchive):
            status = 413 if isinstance(error, TooLarge) else 415 if isinstance(error, NoArchive) else 422
            raise Problem(status, str(error)) from error
        if isinstance(error, StorageError):
            raise Problem(503, f"the archive cannot be stored: {error}") from error
        raise


_BINARY = {"type": "string", "format": "binary"}
_ZIP = {"application/zip": {"schema": _BINARY}}
_DRIFTING = {"rate", "seconds_left"}


def _spec(
    settings: Settings, source: str, target: str, asked: JobSettings, recursive: bool, overwrite: bool
) -> JobSpec:
    options = UpscaleOptions(
        factor=int(asked.factor),
        steps=settings.sr_steps if asked.steps is None else asked.steps,  # here, so that every worker takes the same
        scheduler=asked.scheduler,
        aug_level=asked.aug_level,
        consistency=asked.consistency,
        views=asked.views,
        format=asked.format,
        quality=asked.quality,
    )
    return JobSpec(source, target, options, asked.glob, recursive, overwrite, asked.seed)


def _made(desk: Desk, response: Response, id: str) -> JobView:
    desk.wake()
    response.headers["Location"] = f"/jobs/{id}"
    return _view(_asked(lambda: desk.jobs.status(id)))


def _view(status: JobStatus) -> JobView:
    spec = status.spec
    asked = {name: getattr(spec.options, name) for name in UpscaleOptions.__dataclass_fields__}
    more = {"glob": spec.glob, "recursive": spec.recursive, "overwrite": spec.overwrite, "seed": spec.seed}
    return JobView(
        id=status.id,
        state=status.state,  # type: ignore[arg-type]
        created=status.created,
        finished=status.finished,
        input=None if status.upload else spec.input,
        output=None if status.upload else spec.output,
        settings={**asked, **more},
        total=status.total,
        done=status.done,
        kept=status.kept,
        failed=status.failed,
        rate=None if status.rate is None else round(status.rate, 3),
        seconds_left=None if status.left is None else round(status.left, 1),
        note=status.note,
        failures=status.failures,
    )


def _asked(work: Callable[[], _T], loudly: bool = True) -> _T:
    """`work()`, with its errors as problems; where not `loudly`, a database that is away is no error yet."""
    try:
        return work()
    except KeyError as error:
        raise _unknown(error.args[0]) from error
    except Conflict as error:
        raise Problem(409, str(error)) from error
    except NotAllowed as error:
        raise Problem(409, str(error)) from error
    except (SQLAlchemyError, OSError) as error:
        if not loudly:
            return None  # type: ignore[return-value]
        _log.error("the database of jobs cannot be used: %s", str(error).split("\n")[0])
        detail = "the database of jobs cannot be used; the server's log says why"
        raise Problem(503, detail, headers={"Retry-After": "5"}) from error


def _unknown(id: str) -> Problem:
    return Problem(404, f"there is no job {id}; GET /jobs lists them")


def _refused(field: str, got: str, message: str) -> Problem:
    return bad_fields([FieldError(location="body", field=field, message=message, got=shown(got))])
