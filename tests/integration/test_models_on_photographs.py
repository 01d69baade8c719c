"""Real workers: photographs of every kind become vectors, neighbors and heat maps, or a reason."""

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from fluoro.v1.embedding_pb2 import EmbedImages, FindSimilar
from fluoro.v1.job_pb2 import Job, Step
from fluoro.v1.job_service_pb2 import SubmitJobRequest
from fluoro.v1.photograph_pb2 import ImportImages
from fluoro.v1.visualize_pb2 import VisualizeImages
from fluoro_client.jobs import step
from fluoro_jobs.pipelines import load
from fluoro_jobs.testing.rig import OWNER, Rig
from ml_worker.seeing import DIMENSIONS, write_seeing
from PIL import Image

SECONDS = 90


def saved(picture: Image.Image, format_: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, format_, **options)
    return file.getvalue()


def noise(seed: int, size: tuple[int, ...] = (40, 60, 3)) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 220, size)
    return Image.fromarray(values.astype(np.uint8))


def claims(rows: int, columns: int) -> bytes:
    """A PNG that says it has so many pixels of RGB."""
    header = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(64))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def photographs() -> Iterator[tuple[str, bytes, str, str]]:
    """What each is, its bytes, and what comes of it when it is imported and when it is embedded."""
    plain, sixteen = noise(1), np.arange(2400, dtype=np.uint16).reshape(40, 60) * 20
    see_through = noise(2)
    see_through.putalpha(120)
    yield "plain", saved(plain), "", ""
    yield "nearly the same", saved(plain, "JPEG", quality=95), "", ""
    yield "1 pixel", saved(noise(3, (1, 1, 3))), "", ""
    yield "30,000 pixels wide", saved(noise(4, (2, 30_000, 3))), "", ""
    yield "CMYK", saved(noise(5).convert("CMYK"), "JPEG"), "", ""
    yield "16 bits", saved(Image.fromarray(sixteen)), "", ""
    yield "transparent", saved(see_through), "", ""
    animation = saved(noise(6), save_all=True, append_images=[noise(7), noise(8)])
    yield "animated", animation, "", ""
    yield "30,000 pixels square", claims(30_000, 30_000), "IMAGE_TOO_LARGE", "absent"
    yield "cut off", saved(plain)[:900], "PIXELS_UNDECODABLE", "absent"
    yield "empty", b"", "NOT_AN_IMAGE", "absent"
    yield "black", saved(Image.new("RGB", (8, 8))), "", "MODEL_OUTPUT_INVALID"
    yield "white", saved(Image.new("RGB", (8, 8), "white")), "", "MODEL_OUTPUT_INVALID"


def of_pipeline(name: str, job: Job, **parameters: Any) -> Job:
    """A job of that pipeline with the first two inputs of another job."""
    asked = SubmitJobRequest(job=Job(inputs=job.inputs[:2]), pipeline=f"pipelines/{name}")
    asked.parameters.update(parameters)
    load().validate(asked, OWNER)
    return asked.job


def refused(job: Job) -> Job:
    """A job of one of its images with another kind of model, and with one that is not there."""
    return Job(
        inputs=job.inputs[:1],
        steps=[
            step(ImportImages(), "import"),
            step(EmbedImages(model="ct-tissue"), "kind", after=["import"]),
            step(VisualizeImages(model="seeing", version="9.0.0"), "version", after=["import"]),
        ],
    )


def reasons(one: Step) -> dict[int, str]:
    return {item.input: item.reason for item in one.items}


def check_search(rig: Rig, embed: Step) -> None:
    """A later job compares what that one left, by its blobs."""
    search = step(FindSimilar(neighbors=1), "search")
    again = rig.submit(Job(inputs=[one.blob for one in embed.artifacts], steps=[search]))
    (stored,) = rig.finished(again, SECONDS).steps
    found = stored.find_similar_result.found[:2]
    assert [(one.input, one.neighbors[0].input) for one in found] == [(0, 1), (1, 0)]


def check_pipelines(compared: Job, visualized: Job) -> None:
    assert [one.state for one in compared.steps] == [Step.STATE_SUCCEEDED] * 4
    first, other = compared.steps[2].compare_images_result.images
    assert (first.item, other.item, other.similarity > 0.99) == ("0", "1", True)
    assert {one.display_name for one in compared.steps[3].export_comparison_result.differences} == {
        "dark",
        "bright",
    }
    assert [one.rows for one in visualized.steps[1].visualize_images_result.maps] == [2, 2]


def test_photographs_are_embedded_compared_and_explained_each_for_itself(
    rig: Rig, tmp_path: Path
) -> None:
    write_seeing(tmp_path / "models")
    for service in ("dicom_worker", "scheduler"):
        rig.start(service, slots=2)
    rig.start("ml_worker", slots=2, ml_models_folder=tmp_path / "models")
    rig.start("export_worker", slots=1)
    names, data, imported, outcomes = zip(*photographs(), strict=True)
    job = Job(
        inputs=[rig.blob(each) for each in data],
        steps=[
            step(ImportImages(), "import"),
            step(EmbedImages(model="seeing"), "embed", after=["import"], max_inputs_per_task=3),
            step(FindSimilar(neighbors=2), "similar", after=["embed"]),
            step(VisualizeImages(model="seeing", cells=3), "explain", after=["import"]),
        ],
    )
    jobs = (
        job,
        refused(job),
        of_pipeline("comparison", job, model="seeing", embedding_model="seeing"),
        of_pipeline("visualization", job, model="seeing", cells=2),
    )
    submitted = [rig.submit(each) for each in jobs]
    done, failed, compared, visualized = (rig.finished(each, SECONDS) for each in submitted)

    first, embed, similar, explain = done.steps
    assert reasons(first) == dict(enumerate(imported)), names
    expected = {n: reason for n, reason in enumerate(outcomes) if reason != "absent"}
    assert reasons(embed) == expected, names
    good = [n for n, reason in enumerate(outcomes) if not reason]
    vectors = embed.embed_images_result.embeddings
    assert [each.input for each in vectors] == good
    assert [each.frames for each in vectors] == [3 if names[n] == "animated" else 1 for n in good]
    assert {each.dimensions for each in vectors} == {DIMENSIONS}
    assert {one.role for one in embed.artifacts} == {"embedding"}

    found = similar.find_similar_result
    assert found.images == len(good)
    assert [one.neighbors[0].input for one in found.found[:2]] == [1, 0]
    assert found.found[0].neighbors[0].similarity > 0.99

    check_search(rig, embed)

    assert reasons(explain) == {
        # Black has no direction, but a class; white is no number for either.
        n: "" if names[n] == "black" else reason
        for n, reason in expected.items()
    }
    maps = explain.visualize_images_result.maps
    assert {one.role for one in explain.artifacts} == {"heat-map"}
    assert all(len(one.drops) == one.rows * one.columns for one in maps)

    check_pipelines(compared, visualized)

    kind, version = failed.steps[1:]
    assert (kind.state, kind.reason) == (Step.STATE_FAILED, "MODEL_NOT_APPLICABLE")
    assert (version.state, version.reason) == (Step.STATE_FAILED, "MODEL_UNKNOWN")
