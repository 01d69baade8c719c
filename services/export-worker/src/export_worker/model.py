"""The report: one typed model that every template and format is written from.

Strings are final: in the report's language, one line, without control characters. Nothing in them
identifies a patient or an instance. Pictures are paths below the attempt's folder.
"""

from typing import NotRequired, TypedDict


class Measure(TypedDict):
    """One class in one image. color: `#rrggbb`, or none if no overlay draws it. share: 0 to 1."""

    color: str | None
    share: float
    name: str
    voxels: str
    percent: str
    volume: str
    mean: str


class Likelihood(TypedDict):
    """How sure a model is of one class. share: 0 to 1. file, alt: of a picture, if there is one."""

    name: str
    percent: str
    share: float
    file: NotRequired[str]
    alt: NotRequired[str]


class Classified(TypedDict):
    """Classes of one image by one model, the most probable ones first. frame: empty if one."""

    model: str
    use: int
    frame: str
    rows: list[Likelihood]


class Finding(TypedDict):
    """Classes that a model measured in one image. unit: of the mean. of_tiles: what is counted."""

    model: str
    of_tiles: bool
    unit: str
    rows: list[Measure]


class Picture(TypedDict):
    """A picture on paper. file: path from the attempt's folder, with a leading slash."""

    file: str
    kind: str
    caption: str
    alt: str


class ScaleBar(TypedDict):
    """A length and its share of the image's width, 0 to 1."""

    share: float
    text: str


class Verdict(TypedDict):
    """What models together, or a rule, say of an image. frame: empty if one.

    rows: feature, what was found, score, weight, product; the last one has the total.
    """

    title: str
    frame: str
    said: str
    facts: list[str]
    warnings: list[str]
    rows: list[list[str]]


class ImageBlock(TypedDict):
    """One image. aspect: width over height as seen; none if unknown.

    others: objects in it, and images like it.
    """

    input: str
    facts: list[str]
    aspect: float | None
    scale_bar: ScaleBar | None
    pictures: list[Picture]
    findings: list[Finding]
    verdicts: list[Verdict]
    classes: list[Classified]
    others: list[Classified]


class Thumbnail(TypedDict):
    """One input in little. file: empty without a picture. state: a key of the words."""

    input: str
    file: str
    alt: str
    state: str
    said: str
    percent: str
    share: float


class Problem(TypedDict):
    """Why inputs failed or were skipped. state: a key of the words."""

    input: str
    steps: str
    state: str
    reason: str
    message: str


class Other(TypedDict):
    """Findings in an image without a picture."""

    input: str
    model: str
    rows: list[Measure]


class Compared(TypedDict):
    """A class of one subject: its value in each variant, and how those differ from the first."""

    name: str
    values: list[str]
    shares: list[float]
    differences: list[str]


class Subject(TypedDict):
    """What is compared: an image, or a step. pictures: one per variant, or none."""

    name: str
    quantity: str
    pictures: list[Picture]
    rows: list[Compared]


class Comparison(TypedDict):
    """Variants or time points, the reference first."""

    variants: list[str]
    subjects: list[Subject]
    note: str


class Rows(TypedDict):
    """A table of strings, and what it leaves out."""

    rows: list[list[str]]
    note: str


class Problems(TypedDict):
    """Likewise."""

    rows: list[Problem]
    note: str


class Others(TypedDict):
    """Likewise."""

    rows: list[Other]
    note: str


class Thumbnails(TypedDict):
    """Likewise."""

    rows: list[Thumbnail]
    note: str


class Counts(TypedDict):
    """Inputs by the worst that became of each."""

    inputs: int
    succeeded: int
    skipped: int
    failed: int
    not_reached: int


class Look(TypedDict):
    """Whose report it is. logo: path from the attempt's folder, or empty."""

    organization: str
    footer: str
    accent: str
    logo: str


class Deidentification(TypedDict):
    """What was done to files that identified a patient. facts: name and value."""

    cleaned: str
    changed: str
    masked: str
    left: str
    facts: list[list[str]]
    actions: list[list[str]]


class Report(TypedDict):
    """The whole of it.

    created: year, month, day, hour, minute, second (UTC). use: the words under which every page
    says what the models are for; empty if none is for demonstration or research. rules: name and
    value of what lesions were scored by.
    """

    language: str
    words: dict[str, str]
    look: Look
    title: str
    job: str
    short_job: str
    created: list[int]
    created_text: str
    use: str
    warnings: list[str]
    counts: Counts
    naming: str
    steps: list[list[str]]
    deidentification: Deidentification | None
    problems: Problems
    images: list[ImageBlock]
    images_note: str
    rules: list[list[str]]
    thumbnails: Thumbnails
    other_findings: Others
    comparison: Comparison | None
    instances: Rows
    models: list[list[list[str]]]
    certificates: Rows
    software: list[list[str]]
    runs: Rows
    sources: Rows
