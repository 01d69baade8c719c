"""ConvertDicom: volumes as NIfTI or NPY, files in another Transfer Syntax."""

from fluoro.v1.convert_pb2 import ConvertDicom, ConvertDicomResult
from fluoro_jobs.worker.context import StepContext
from fluoro_jobs.worker.handler import handles

from dicom_worker.convert.transcoding import instances
from dicom_worker.convert.volumes import volumes
from dicom_worker.versions import refuse_versions

TARGETS = {"nifti": volumes, "npy": volumes, "dicom": instances}


@handles(ConvertDicom)
def convert_dicom(request: ConvertDicom, context: StepContext) -> ConvertDicomResult:
    """Leaves volumes with their geometry, or instances, of each item."""
    result = ConvertDicomResult()
    convert = TARGETS[request.WhichOneof("target") or "nifti"]
    items = {}
    for item in context.each("convert"):
        with item:
            result.MergeFrom(convert(item, request, context.check))
            items[item.key] = item
    # After the loop, because two versions may come from two items.
    refuse_versions(result.instances, items, context, "convert")
    return result
