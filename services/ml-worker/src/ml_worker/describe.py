"""A model in the words of the API."""

from fluoro.v1.model_pb2 import Model as ModelProto
from fluoro.v1.model_pb2 import ModelTensor

from ml_worker.manifest import INTENDED_USE, Input
from ml_worker.outputs import Output
from ml_worker.repository import ModelFiles


def described(files: ModelFiles) -> ModelProto:
    """What the manifest and the card say; nothing of its state."""
    manifest = files.manifest
    about = ModelProto(
        name=manifest.resource_name,
        summary=manifest.summary,
        intended_use=INTENDED_USE[manifest.intended_use],
        license=manifest.license,
        source=manifest.source,
        training_data=manifest.training_data,
        inputs=[_tensor(one, "image" if one.image else "") for one in manifest.inputs],
        outputs=[_tensor(one, one.kind) for one in manifest.outputs],
        max_batch=manifest.batch.max,
        sha256=bytes.fromhex(manifest.files["model.onnx"]),
        manifest_sha256=files.manifest_sha256,
        card=files.card,
    )
    for label in manifest.labels:
        about.labels.add(value=label.value, display_name=label.display_name, codes=label.coded)
    return about


def _tensor(tensor: Input | Output, kind: str) -> ModelTensor:
    shape = [str(size) for size in tensor.shape]
    return ModelTensor(name=tensor.name, dtype=tensor.dtype, shape=shape, kind=kind)
