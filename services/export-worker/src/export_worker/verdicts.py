"""What several models together say of an image, and how a lesion scores by the ABCD rule."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fluoro.v1 import classify_pb2, dermoscopy_pb2, ml_pb2
from fluoro_jobs.worker.context import Upstream
from google.protobuf.message import Message

from export_worker import wording
from export_worker.model import Classified, Likelihood, Verdict
from export_worker.words import Words

Frame = classify_pb2.ClassifiedFrame
Lesion = dermoscopy_pb2.AssessedLesion

SHOWN_CLASSES: Final = 5
"""Most classes of an image whose probabilities are drawn."""
SHOWN_FRAMES: Final = 3
"""Most frames of an image that are."""

ABSTAINED: Final = {
    Frame.VERDICT_OUT_OF_DISTRIBUTION: "abstained_novel",
    Frame.VERDICT_MODELS_DISAGREE: "abstained_disagree",
    Frame.VERDICT_UNCERTAIN: "abstained_uncertain",
}
"""Why a frame has no class: keys of the words."""

SCORED: Final = {
    Lesion.VERDICT_BENIGN: "abcd_below",
    Lesion.VERDICT_SUSPICIOUS: "abcd_suspicious",
    Lesion.VERDICT_HIGHLY_SUSPICIOUS: "abcd_highly_suspicious",
}
"""What a total score says: keys of the words."""

SUSPICIOUS: Final = re.compile(
    r"melanom|lesion|carcinom|sarcom|malign|cancer|\b(mel|bcc|scc|akiec)\b", re.IGNORECASE
)
"""In the names of classes that a skin check shows first; the short ones are those of ISIC."""
UNSUSPICIOUS: Final = re.compile(r"\b(benign|no|non|not|without)\b", re.IGNORECASE)
"""In names that are then not meant: `no lesion`."""
NON_MELANOMA: Final = re.compile(r"\b(non|not)\W?melanoma", re.IGNORECASE)
"""Says which cancer of the skin it is, not that there is none."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A lesion, and the rule that it was scored by."""

    lesion: dermoscopy_pb2.AssessedLesion
    rule: dermoscopy_pb2.AbcdRule


def models_judging(result: Message) -> list[ml_pb2.ModelReference]:
    """The models that ran for ClassifyImages or AssessDermoscopy, each once."""
    models: list[ml_pb2.ModelReference] = []
    match result:
        case classify_pb2.ClassifyImagesResult():
            frames = (frame for image in result.images for frame in image.frames)
            models = [opinion.model for frame in frames for opinion in frame.opinions]
        case dermoscopy_pb2.AssessDermoscopyResult():
            models = [lesion.model for lesion in result.lesions]
    return list({model.SerializeToString(deterministic=True): model for model in models}.values())


def is_suspicious(name: str) -> bool:
    """Whether a class of this name comes first: `melanoma`, not `benign lesion`."""
    # Otherwise `non-melanoma skin cancer` would pass for unsuspicious, by its `non`.
    name = NON_MELANOMA.sub("", name)
    return bool(SUSPICIOUS.search(name)) and not UNSUSPICIOUS.search(name)


def rank(frames: Sequence[classify_pb2.ClassifiedFrame]) -> tuple[int, float]:
    """Sorts images, the most suspicious first, by their most suspicious frame.

    Suspicious classes by mean probability, then frames without a class, then all others.
    """
    return min((_rank(frame) for frame in frames), default=(2, 0.0))


def _rank(frame: classify_pb2.ClassifiedFrame) -> tuple[int, float]:
    # Models that abstain may have seen something: before all that is unsuspicious.
    if frame.verdict != Frame.VERDICT_CLASSIFIED:
        return 1, 0.0
    if is_suspicious(frame.display_name):
        # Negative, because Python sorts upwards.
        return 0, -wording.share(frame.mean_probability)
    return 2, 0.0


def first_frames(
    frames: Sequence[classify_pb2.ClassifiedFrame],
) -> list[classify_pb2.ClassifiedFrame]:
    """The most suspicious ones, as many as are shown."""
    return sorted(frames, key=lambda frame: (_rank(frame), frame.frame))[:SHOWN_FRAMES]


def in_short(
    frames: Sequence[classify_pb2.ClassifiedFrame], scored: Sequence[Scored], words: Words
) -> Likelihood | None:
    """The verdict below a picture in little; None if there is none."""
    if frames:
        # The most suspicious frame speaks for the image: a mean would hide it among the others.
        frame = min(frames, key=_rank)
        if frame.verdict == Frame.VERDICT_CLASSIFIED:
            return {
                "name": _class(frame),
                "percent": words.percent(frame.mean_probability),
                "share": wording.share(frame.mean_probability),
            }
        return {"name": words("abstained"), "percent": "", "share": 0.0}
    for each in scored:
        name = f"{words(_scored(each.lesion))}, {words.short(each.lesion.total)}"
        return {"name": name, "percent": "", "share": 0.0}
    return None


def opinions(frames: Sequence[classify_pb2.ClassifiedFrame], words: Words) -> list[Classified]:
    """What each model says of the frames that are shown."""
    return [
        {
            "model": ", ".join(_said_of(opinion, words)),
            "use": opinion.model.intended_use,
            "frame": _frame(frame, frames, words),
            "rows": [
                {
                    "name": wording.printable(score.display_name, 64) or str(score.label),
                    "percent": words.percent(score.probability),
                    "share": wording.share(score.probability),
                }
                for score in opinion.classes[:SHOWN_CLASSES]
            ],
        }
        for frame in first_frames(frames)
        for opinion in frame.opinions
    ]


def verdicts_of(
    frames: Sequence[classify_pb2.ClassifiedFrame], lesions: Sequence[Scored], words: Words
) -> list[Verdict]:
    """What a rule says of lesions, and models together of the frames that are shown."""
    told = [scored(each, words) for each in lesions]
    return told + [judged(frame, frames, words) for frame in first_frames(frames)]


def judged(
    frame: classify_pb2.ClassifiedFrame,
    frames: Sequence[classify_pb2.ClassifiedFrame],
    words: Words,
) -> Verdict:
    """What the models together say of one of these frames."""
    name, mean = _class(frame), words.percent(frame.mean_probability)
    agreement = words("agreement", share=words.percent(frame.agreement))
    if frame.verdict == Frame.VERDICT_CLASSIFIED:
        said = f"{name}, {mean}"
        facts = [words("mean_of", models=str(len(frame.opinions))), agreement]
    else:
        why = ABSTAINED.get(frame.verdict)
        said = words(why) if why else words("abstained")
        # Told as a fact and not as the verdict: the models abstain.
        facts = [words("most_probable_is", name=name, mean=mean), agreement]
        facts.append(words("abstained_note"))
    return {
        "title": words("verdict"),
        "frame": _frame(frame, frames, words),
        "said": said,
        "facts": facts,
        "warnings": [
            words(
                "novel",
                model=_model(opinion.model),
                novelty=words.short(round(opinion.novelty, 2)),
                threshold=words.short(round(opinion.novelty_threshold, 2)),
            )
            for opinion in frame.opinions
            # Each model by its own threshold: novelties of two models have no common scale.
            if opinion.HasField("novelty") and opinion.novelty >= opinion.novelty_threshold
        ],
        "rows": [],
    }


def scored(each: Scored, words: Words) -> Verdict:
    """The four scores with their weights, the total and what it says, and the lesion's size."""
    lesion, rule = each.lesion, each.rule
    parts: list[tuple[str, int, float, str]] = [
        ("asymmetry", lesion.asymmetry, rule.asymmetry_weight, words("of_axes")),
        ("border", lesion.border, rule.border_weight, words("of_eighths")),
        ("colors", len(lesion.colors), rule.colors_weight, _names(lesion.colors, words)),
        (
            "structures",
            len(lesion.structures),
            rule.structures_weight,
            _names(lesion.structures, words),
        ),
    ]
    rows = [
        [words(key), found, str(score), words.short(weight), words.short(score * weight)]
        for key, score, weight, found in parts
    ]
    # The total as it was computed: a sum of rounded products may differ in the last digit.
    rows.append([words("total"), "", "", "", words.short(lesion.total)])
    facts = [words("share_of_image", share=words.percent(lesion.fraction))]
    if lesion.HasField("diameter_mm"):
        facts.append(words("diameter", mm=words.number(lesion.diameter_mm, 1)))
    if lesion.HasField("area_mm2"):
        facts.append(words("area", mm2=words.number(lesion.area_mm2, 1)))
    # Without a scale there is neither diameter nor area, and the reader is told why.
    if len(facts) == 1:
        facts.append(words("no_scale"))
    return {
        "title": ", ".join([words("abcd"), _model(lesion.model)]),
        "frame": "",
        "said": f"{words(_scored(lesion))}, {words.short(lesion.total)}",
        "facts": facts,
        "warnings": [],
        "rows": rows,
    }


def rules(upstream: Sequence[Upstream], words: Words) -> list[list[str]]:
    """Thresholds, source and counter-evidence of each rule that lesions were scored by, once."""
    rows: list[list[str]] = []
    for step in upstream:
        if not isinstance(step.result, dermoscopy_pb2.AssessDermoscopyResult):
            continue
        rule = step.result.rule
        thresholds = words(
            "abcd_thresholds",
            suspicious=words.short(rule.suspicious_from),
            highly=words.short(rule.highly_suspicious_above),
        )
        told = [
            [words("thresholds"), thresholds],
            [words("rule_source"), wording.printable(rule.source)],
            [words("counter_evidence"), wording.printable(rule.counter_evidence)],
            [words("how_told"), words("abcd_note")],
        ]
        rows += [row for row in told if row not in rows]
    return rows


def _said_of(opinion: classify_pb2.Opinion, words: Words) -> list[str]:
    """Its model, whether it is calibrated, and how new to it the image is."""
    parts = [_model(opinion.model), words("calibrated" if opinion.calibrated else "not_calibrated")]
    if opinion.HasField("novelty"):
        novelty, threshold = (
            words.short(round(opinion.novelty, 2)),
            words.short(round(opinion.novelty_threshold, 2)),
        )
        parts.append(words("novelty", novelty=novelty, threshold=threshold))
    return parts


def _frame(
    frame: classify_pb2.ClassifiedFrame,
    frames: Sequence[classify_pb2.ClassifiedFrame],
    words: Words,
) -> str:
    """Which one it is; empty if there is only the first."""
    if all(each.frame <= 1 for each in frames):
        return ""
    return words("frame", frame=str(frame.frame))


def _scored(lesion: dermoscopy_pb2.AssessedLesion) -> str:
    return SCORED.get(lesion.verdict, "no_verdict")


def _class(frame: classify_pb2.ClassifiedFrame) -> str:
    return wording.printable(frame.display_name, 64) or str(frame.label)


def _model(model: ml_pb2.ModelReference) -> str:
    return wording.printable(f"{model.name} {model.version}", 80)


def _names(found: Sequence[str], words: Words) -> str:
    return ", ".join(map(words.term, found)) or wording.NONE
