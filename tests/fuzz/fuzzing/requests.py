"""Requests made from the descriptors: nearly good ones, arbitrary ones, and bytes that are none."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from fluoro.v1.blob_service_pb2 import UploadBlobHeader, UploadBlobRequest
from fluoro.v1.dicom_pb2 import InspectDicom, RenderDicom, VoiWindow
from fluoro.v1.export_pb2 import ExportReport
from fluoro.v1.job_pb2 import Job, Step
from fluoro.v1.job_service_pb2 import SubmitJobRequest, WaitJobRequest
from fluoro.v1.ml_pb2 import AnalyzeImages
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from fuzzing.values import MARKED_BYTES, nested, unknown_fields, value

DEEPEST: Final = 6
"""Levels of messages that an arbitrary request has."""


@dataclass(slots=True)
class World:
    """What there is in the gateway: names of jobs, names of blobs, cursors."""

    jobs: list[str] = field(default_factory=list)
    blobs: list[str] = field(default_factory=list)
    cursors: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """All of them."""
        return [*self.jobs, *self.blobs, *self.cursors]


def messages(method: MethodDescriptor, world: World, random: Random) -> list[bytes]:
    """The messages of one call."""
    if method.client_streaming:
        count = random.choice((0, 1, 2, 2, 3, 5))
    else:
        # None and two are not what a client sends, but what a program may.
        count = random.choices((1, 0, 2), (92, 4, 4))[0]
    if method.input_type.name == "UploadBlobRequest" and random.random() < 0.3:
        parts = [UploadBlobRequest(header=UploadBlobHeader()), UploadBlobRequest(chunk=b"x")]
        random.shuffle(parts)
        return [part.SerializeToString() for part in parts]
    return [_one(method, world, random) for _ in range(count)]


def _one(method: MethodDescriptor, world: World, random: Random) -> bytes:
    kind = random.random()
    if kind < 0.5:
        request = good(method, world, random)
        for _ in range(random.randint(0, 3)):
            mutate(request, world, random)
        return request.SerializeToString()
    request = GetMessageClass(method.input_type)()
    if kind < 0.75:
        fill(request, world, random)
        return request.SerializeToString()
    if kind < 0.8:
        return good(method, world, random).SerializeToString() + unknown_fields(random)
    if kind < 0.83:
        return nested(random)
    if kind < 0.86:
        return random.randbytes(random.choice((1, 10, 1_000, 70_000)))
    fill(request, world, random)
    return damaged(request.SerializeToString() or MARKED_BYTES, random)


def good(method: MethodDescriptor, world: World, random: Random) -> Message:
    """A request of the method that nothing is wrong with."""
    request = GetMessageClass(method.input_type)()
    fields = request.DESCRIPTOR.fields_by_name
    names = world.blobs if "Blob" in method.name else world.jobs
    for name in ("name", "job"):
        if name in fields and fields[name].type == FieldDescriptor.TYPE_STRING:
            setattr(request, name, random.choice(names))
    if "start_cursor" in fields and random.random() < 0.3:
        request.start_cursor = random.choice(world.cursors)  # type: ignore[attr-defined]  # found just now
    if "step" in fields:
        request.step = "a"  # type: ignore[attr-defined]  # found just now
    if isinstance(request, SubmitJobRequest):
        steps = [
            Step(name="a", inspect_dicom=InspectDicom()),
            Step(name="b", render_dicom=RenderDicom(window=VoiWindow(center=40, width=400))),
            Step(name="c", analyze_images=AnalyzeImages(model="ct-tissue"), after=["b"]),
            Step(name="d", export_report=ExportReport(title="R"), after=["a", "b", "c"]),
        ]
        chosen = steps[: random.randint(1, 4)]
        request.job.CopyFrom(Job(inputs=[random.choice(world.blobs)], steps=chosen))
        request.validate_only = random.random() < 0.5
    if isinstance(request, WaitJobRequest):
        request.timeout.FromNanoseconds(1)
    return request


def fill(message: Message, world: World, random: Random, depth: int = 0) -> None:
    """Gives arbitrary fields arbitrary values."""
    each: Any
    for each in message.DESCRIPTOR.fields:
        if random.random() < 0.5:
            _set(message, each, world, random, depth)


def mutate(message: Message, world: World, random: Random) -> None:
    """Gives one field of the message, or of a message in it, an arbitrary value."""
    target = random.choice(list(_parts(message)))
    fields: Any = target.DESCRIPTOR.fields
    if fields:
        _set(target, random.choice(fields), world, random, DEEPEST - 1)


def _parts(message: Message) -> Iterator[Message]:
    yield message
    for each, held in message.ListFields():
        if each.message_type and not each.message_type.GetOptions().map_entry:
            for part in held if each.is_repeated else (held,):
                yield from _parts(part)


def _set(message: Message, each: FieldDescriptor, world: World, random: Random, depth: int) -> None:
    held: Any = getattr(message, each.name)
    if each.message_type and each.message_type.GetOptions().map_entry:
        key, content = each.message_type.fields
        for _ in range(random.choice((1, 2, 70))):
            if content.message_type is None:
                held[value(key, random, [])] = value(content, random, world.names)
            else:
                held[value(key, random, [])].SetInParent()
    elif each.message_type:
        if depth >= DEEPEST:
            return
        for _ in range(random.choice((1, 1, 2, 40)) if each.is_repeated else 1):
            part = held.add() if each.is_repeated else held
            part.SetInParent()
            # Or forty steps would have forty tasks of forty attempts each.
            is_one_of_many = each.is_repeated and len(held) > 2
            fill(part, world, random, DEEPEST if is_one_of_many else depth + 1)
    elif each.is_repeated:
        count = random.choice((1, 2, 3, 100))
        held.extend(value(each, random, world.names) for _ in range(count))
    else:
        setattr(message, each.name, value(each, random, world.names))


def damaged(data: bytes, random: Random) -> bytes:
    """Bytes of a message with some of them changed, lost or added."""
    at, end = sorted(random.randrange(len(data) + 1) for _ in range(2))
    return random.choice(
        (
            data[:at],
            data[:at] + random.randbytes(random.randint(1, 8)) + data[end:],
            data[:at] + data[end:],
            data + data[at:end],
        )
    )
