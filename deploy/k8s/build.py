"""Prints what `kubectl kustomize DIRECTORY` prints, where there is no kubectl.

`python deploy/k8s/build.py deploy/k8s/overlays/dev`. Neither PyPI nor Debian packages a current
kustomize, but every machine that tests this repository has Python. So this is the part of kustomize
that our manifests use. A field that it does not know is an error. Patches are JSON 6902 lists in
files. tests/contract compares its output with kubectl's own wherever kubectl exists. Deploy with
kubectl.
"""

import copy
import re
import sys
from pathlib import Path
from typing import Any, Final, TypeAlias

import yaml

Manifest: TypeAlias = dict[str, Any]

FIELDS: Final = {
    *("apiVersion", "kind", "resources", "components", "configMapGenerator", "generatorOptions"),
    *("patches", "namespace", "labels", "replicas", "images"),
}
"""What may stand in a kustomization.yaml here."""

CLUSTER_SCOPED: Final = {
    "Namespace",
    "ClusterRole",
    "ClusterRoleBinding",
    "PersistentVolume",
    "StorageClass",
    "PriorityClass",
}
"""Kinds without a namespace."""


class UnsupportedError(Exception):
    """A kustomization asks for something that this builder cannot do."""


def build(directory: Path) -> list[Manifest]:
    """The manifests of a kustomization, in the order of its resources.

    UnsupportedError for what is outside the subset.
    """
    return _apply(directory, [])


def _apply(directory: Path, manifests: list[Manifest]) -> list[Manifest]:
    """Adds a kustomization's own resources to `manifests` and transforms all of them.

    A component is applied to its user's manifests.
    """
    path = directory / "kustomization.yaml"
    kustomization = yaml.safe_load(path.read_text())
    _only(FIELDS, kustomization, path)
    for resource in kustomization.get("resources", []):
        manifests = manifests + _load(directory / resource)
    for component in kustomization.get("components", []):
        manifests = _apply(directory / component, manifests)
    options = kustomization.get("generatorOptions", {})
    for generator in kustomization.get("configMapGenerator", []):
        if options != {"disableNameSuffixHash": True}:
            raise UnsupportedError(f"{path}: generatorOptions must be disableNameSuffixHash: true")
        manifests.append(_config_map(generator, path))
    for patch in kustomization.get("patches", []):
        _only({"path", "target"}, patch, path)
        operations = yaml.safe_load((directory / patch["path"]).read_text())
        for manifest in _targets(manifests, patch["target"], path):
            for operation in operations:
                _patch(manifest, operation, path)
    for manifest in manifests:
        _transform(manifest, kustomization, path)
    return manifests


def _load(path: Path) -> list[Manifest]:
    if path.is_dir():
        return build(path)
    return [manifest for manifest in yaml.safe_load_all(path.read_text()) if manifest]


def _config_map(generator: Manifest, path: Path) -> Manifest:
    _only({"name", "literals"}, generator, path)
    data = dict(literal.split("=", 1) for literal in generator["literals"])
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": generator["name"]},
        "data": data,
    }


def _targets(manifests: list[Manifest], target: Manifest, path: Path) -> list[Manifest]:
    _only({"kind", "name"}, target, path)
    name = re.compile(target.get("name", ".*"))
    found = [
        m
        for m in manifests
        if m["kind"] == target["kind"] and name.fullmatch(m["metadata"]["name"])
    ]
    if not found:
        raise UnsupportedError(f"{path}: no manifest for the patch target {target}")
    return found


def _patch(manifest: Manifest, operation: Manifest, path: Path) -> None:
    """Applies one JSON 6902 operation (RFC 6902 section 4) at its pointer (RFC 6901)."""
    _only({"op", "path", "value"}, operation, path)
    *parents, last = [
        part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]
    ]
    node: Any = manifest
    for part in parents:
        node = node[int(part)] if isinstance(node, list) else node[part]
    value = copy.deepcopy(operation.get("value"))
    match operation["op"], node, last:
        case "add", list(), "-":
            node.append(value)
        case "add" | "replace", dict(), _:
            if operation["op"] == "replace" and last not in node:
                raise UnsupportedError(f"{path}: nothing to replace at {operation['path']}")
            node[last] = value
        case "remove", dict(), _:
            del node[last]
        case _:
            raise UnsupportedError(f"{path}: {operation['op']} at {operation['path']}")


def _transform(manifest: Manifest, kustomization: Manifest, path: Path) -> None:
    metadata = manifest["metadata"]
    if "namespace" in kustomization and manifest["kind"] not in CLUSTER_SCOPED:
        metadata["namespace"] = kustomization["namespace"]
    for label in kustomization.get("labels", []):
        _only({"pairs"}, label, path)
        metadata["labels"] = metadata.get("labels", {}) | label["pairs"]
    for replicas in kustomization.get("replicas", []):
        if (
            manifest["kind"] in {"Deployment", "StatefulSet"}
            and metadata["name"] == replicas["name"]
        ):
            manifest["spec"]["replicas"] = replicas["count"]
    pod = manifest.get("spec", {}).get("template", {}).get("spec", {})
    for image in kustomization.get("images", []):
        _only({"name", "newName", "newTag"}, image, path)
        for container in pod.get("containers", []) + pod.get("initContainers", []):
            name, _, tag = container["image"].partition(":")
            if name == image["name"]:
                container["image"] = ":".join(
                    filter(None, (image.get("newName", name), image.get("newTag", tag)))
                )


def _only(known: set[str], given: Manifest, path: Path) -> None:
    if unknown := set(given) - known:
        raise UnsupportedError(
            f"{path}: {', '.join(sorted(unknown))} is outside the subset that this builder knows; "
            "see its docstring"
        )


if __name__ == "__main__":
    yaml.safe_dump_all(build(Path(sys.argv[1])), sys.stdout, sort_keys=False)
