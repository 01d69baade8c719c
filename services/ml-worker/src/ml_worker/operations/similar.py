"""FindSimilar: compares vectors of a job or of earlier ones, every one with every other."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from fluoro.v1 import embedding_pb2
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.operations import JOB_INPUT
from fluoro_jobs.worker.context import Part, StepContext
from fluoro_jobs.worker.handler import handles
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
"""Unit vectors: (vectors, dimensions)."""

DEFAULT_NEIGHBORS: Final = 10
MAX_VECTORS: Final = 50_000
MAX_BYTES: Final = 256 * 2**20
"""Of all vectors together."""
VECTORS_AT_ONCE: Final = 64
"""Queries between two looks at whether the attempt is cancelled: their scores take 12.8 MB."""
DECIMALS: Final = 6
"""Of a similarity. Further ones depend on the processor, and would change the order of equals."""
LENGTH_TOLERANCE: Final = 1e-3


@dataclass(frozen=True, slots=True)
class Embedded:
    """An image of the job. input, key: those of its item. vectors: one per frame."""

    input: int
    key: str
    vectors: Vectors


@handles(embedding_pb2.FindSimilar)
def find_similar(
    request: embedding_pb2.FindSimilar, context: StepContext
) -> embedding_pb2.FindSimilarResult:
    """Tells for each image that is asked for which others are most like it."""
    images = read_images(told_of(context), context)
    wanted = chosen(request.queries, [image.key for image in images], context)
    result = embedding_pb2.FindSimilarResult(images=len(images))
    result.found.extend(
        compare(images, wanted, request.neighbors or DEFAULT_NEIGHBORS, context) if images else ()
    )
    return result


def told_of(context: StepContext) -> dict[tuple[str, str], embedding_pb2.ImageEmbedding]:
    """What EmbedImages tells of the vectors, by step and name of the array."""
    return {
        (step, image.vectors): image
        for step, result in context.results.items()
        if isinstance(result, embedding_pb2.EmbedImagesResult)
        for image in result.embeddings
    }


def read_images(
    told: dict[tuple[str, str], embedding_pb2.ImageEmbedding], context: StepContext
) -> list[Embedded]:
    """The vectors of every image that has some.

    FluoroError MODEL_NOT_APPLICABLE if they are of more than one model, IMAGE_TOO_LARGE if there
    are too many.
    """
    images: list[Embedded] = []
    parts = list(first_parts(context))
    entries = [told.get((part.step, part.name)) for part in parts]
    # By what earlier steps told, before a single vector is read.
    check_comparable([entry for entry in entries if entry is not None])
    count = size = 0
    for part, entry, item in zip(parts, entries, context.each("read"), strict=True):
        with item:
            # Vectors of a step that did not tell of them may be of any model.
            if entry is None and part.role != JOB_INPUT:
                raise not_as_told()
            vectors = read_vectors(item.fetch(part), entry)
            images.append(Embedded(item.input, item.key, vectors))
            count, size = count + len(vectors), size + vectors.nbytes
        # Once more with what was read: vectors of a job's inputs were told by nobody.
        check_room(count, size)
    if len({image.vectors.shape[1] for image in images}) > 1:
        raise of_different_models()
    return images


def first_parts(context: StepContext) -> Iterator[Part]:
    """Of each input, the part with its vectors."""
    for each in context.inputs:
        yield next(part for part in each.parts if part.role in {"embedding", JOB_INPUT})


def check_comparable(entries: Sequence[embedding_pb2.ImageEmbedding]) -> None:
    """FluoroError unless the vectors are of one model, and few enough to be compared here."""
    if len({(entry.manifest_sha256, entry.dimensions) for entry in entries}) > 1:
        raise of_different_models()
    check_room(
        sum(entry.frames for entry in entries),
        sum(entry.frames * entry.dimensions for entry in entries) * np.float32().itemsize,
    )


def of_different_models() -> FluoroError:
    """The refusal of vectors that mean nothing to each other."""
    return FluoroError(
        Reason.MODEL_NOT_APPLICABLE,
        "The vectors are of different models or versions, which cannot be compared. Let one "
        "EmbedImages step make them all, and give it a version.",
    )


def check_room(count: int, size: int) -> None:
    """FluoroError IMAGE_TOO_LARGE if so many vectors of so many bytes are not compared here."""
    if count > MAX_VECTORS or size > MAX_BYTES:
        raise FluoroError(
            Reason.IMAGE_TOO_LARGE,
            f"FindSimilar compares {MAX_VECTORS} vectors or {MAX_BYTES >> 20} MiB of them at most; "
            f"these are {count} and {size >> 20} MiB. Split the job, or load the vectors into a "
            "vector store.",
        )


def read_vectors(path: Path, entry: embedding_pb2.ImageEmbedding | None) -> Vectors:
    """An array of unit vectors. FluoroError MODEL_OUTPUT_INVALID unless it is as its entry says.

    Of an input of the job there is no entry; it may have any shape that EmbedImages gives.
    """
    try:
        array: NDArray[Any] = open_memmap(path, mode="r")
    except (ValueError, TypeError, SyntaxError, OverflowError, EOFError) as error:
        raise not_as_told() from error
    told = (entry.frames, entry.dimensions) if entry else array.shape
    if array.shape != told or array.ndim != 2 or array.dtype.str != "<f4" or not array.size:  # noqa: PLR2004 - vectors, dimensions
        raise not_as_told()
    check_room(len(array), array.nbytes)
    # A copy, because the file goes with the item's folder.
    vectors: Vectors = np.array(array)
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(vectors, axis=1)
    # What is no number is not close to 1 either.
    if not (np.abs(lengths - 1) <= LENGTH_TOLERANCE).all():
        raise not_as_told()
    return vectors


def not_as_told() -> FluoroError:
    """The refusal of an array."""
    return FluoroError(
        Reason.MODEL_OUTPUT_INVALID,
        "This is no array of unit vectors as EmbedImages leaves them, or not the one that it told "
        "of, so it was not compared. Run the step that made it again.",
    )


def chosen(queries: Iterable[str], keys: Sequence[str], context: StepContext) -> list[int]:
    """Places of the images that are asked for, each once, in input order.

    FluoroError CHOICE_UNAVAILABLE if a query is no image of this step; one that failed is.
    """
    wanted = set(queries)
    unknown = wanted - {each.key for each in context.inputs}
    if unknown:
        raise FluoroError(
            Reason.CHOICE_UNAVAILABLE,
            f"No image of this step has the key of {len(unknown)} of the queries. ListItems has "
            "the keys.",
        )
    return [place for place, key in enumerate(keys) if not wanted or key in wanted]


def compare(
    images: Sequence[Embedded], wanted: Sequence[int], neighbors: int, context: StepContext
) -> Iterator[embedding_pb2.SimilarImages]:
    """The nearest other images of each frame of those wanted."""
    everything = np.concatenate([image.vectors for image in images])
    frames = [len(image.vectors) for image in images]
    starts = np.concatenate([[0], np.cumsum(frames)[:-1]])
    queries = [(place, frame) for place in wanted for frame in range(frames[place])]
    for done in range(0, len(queries), VECTORS_AT_ONCE):
        context.progress("compare", done, len(queries))
        block = queries[done : done + VECTORS_AT_ONCE]
        # Blocks bound memory: all scores of 50,000 vectors would take 10 GB.
        rows = everything[[starts[place] + frame for place, frame in block]]
        # Rounding takes products of unit vectors a little beyond 1.
        cosines = np.round(np.clip(rows @ everything.T, -1, 1), DECIMALS)
        # An image is as like as its most similar frame.
        best = np.maximum.reduceat(cosines, starts, axis=1)
        for (place, frame), row, nearest in zip(block, cosines, best, strict=True):
            image = images[place]
            found = embedding_pb2.SimilarImages(input=image.input, item=image.key, frame=frame + 1)
            # Stable, so that equals keep the order of the inputs.
            order = [int(other) for other in np.argsort(-nearest, kind="stable") if other != place]
            for other in order[:neighbors]:
                start = int(starts[other])
                found.neighbors.add(
                    input=images[other].input,
                    item=images[other].key,
                    frame=int(row[start : start + frames[other]].argmax()) + 1,
                    similarity=round(float(nearest[other]), DECIMALS),
                )
            yield found
