"""DeidentifyDicom: removes what identifies a patient, and proves it."""

from fluoro.v1.deidentify_pb2 import (
    DeidentificationAction,
    DeidentifiedInstance,
    DeidentifyDicom,
    DeidentifyDicomResult,
)
from fluoro_jobs.worker.context import StepContext, StepItem
from fluoro_jobs.worker.handler import handles

from dicom_worker.deidentify.instance import deidentify
from dicom_worker.deidentify.profile import edition, options_of
from dicom_worker.deidentify.pseudonyms import read_key
from dicom_worker.deidentify.report import report
from dicom_worker.deidentify.settings import DeidentifySettings
from dicom_worker.versions import refuse_versions


@handles(DeidentifyDicom)
def deidentify_dicom(request: DeidentifyDicom, context: StepContext) -> DeidentifyDicomResult:
    """Leaves `instance-0000.dcm` and `deidentification-report-0000.json` for each clean input."""
    # Once for the task: all its files get pseudonyms of the same key, also while it is being
    # rotated.
    key = read_key(DeidentifySettings().keys_folder, request.project)
    options = options_of(request)
    result = DeidentifyDicomResult(profile_edition=edition())
    written = {}
    for item in context.each("deidentify"):
        with item:
            clean = item.folder / "clean.dcm"
            cleaned = deidentify(item.fetch(), clean, key, options, context.check)
            entry = DeidentifiedInstance(
                input=item.input,
                item=item.key,
                sop_class_uid=cleaned.sop_class,
                sop_instance_uid=cleaned.sop_instance,
                study_instance_uid=cleaned.study,
                series_instance_uid=cleaned.series,
                changed_values=cleaned.changed,
                searched_identifiers=cleaned.searched,
                residual_identifiers=0,
                method_codes=[value for value, _ in cleaned.options.codes],
                pixels_cleaned=cleaned.pixels is not None,
                masked_regions=cleaned.pixels.regions if cleaned.pixels else 0,
                masked_pixels=cleaned.pixels.pixels if cleaned.pixels else 0,
                actions=[
                    DeidentificationAction(code=code, values=values)
                    # Sorted, so that another attempt leaves the same result.
                    for code, values in sorted(cleaned.actions.items())
                ],
                key_id=key.id,
            )
            story = report(cleaned, key, request.project)
            entry.instance = item.put("instance", ".dcm", "instance", "application/dicom", clean)
            entry.report = put_report(item, story)
            result.instances.append(entry)
            written[item.key] = item
    refuse_versions(result.instances, written, context, "deidentify")
    return result


def put_report(item: StepItem, story: bytes) -> str:
    """Stores what was done to the item."""
    return item.put(
        "deidentification-report",
        ".json",
        "deidentification-report",
        "application/json",
        story,
    )
