"""Checks manifests against the schema of the Kubernetes API, unknown fields refused.

`python deploy/k8s/build.py deploy/k8s/overlays/dev | python deploy/k8s/validate.py`: exit status 1
names what is wrong.
"""

import sys
from typing import Any

import yaml
from kubernetes_validate.utils import ValidationError, latest_version, validate


def complaints(manifests: list[dict[str, Any]], version: str) -> list[str]:
    """What the schema of this Kubernetes version (such as `1.37.0`) has against the manifests."""
    found = [] if manifests else ["no manifests: did the build fail?"]
    for manifest in manifests:
        try:
            validate(manifest, version, strict=True)
        except ValidationError as error:
            field = ".".join(str(part) for part in error.path)
            found.append(
                f"{manifest['kind']}/{manifest['metadata']['name']}: {field}: {error.message}"
            )
    return found


def main() -> int:
    """Checks what comes on standard input. Returns the exit status."""
    manifests = [manifest for manifest in yaml.safe_load_all(sys.stdin) if manifest]
    version = latest_version()
    found = complaints(manifests, version)
    sys.stdout.write("".join(f"{line}\n" for line in found))
    sys.stdout.write(
        f"{len(manifests)} manifests, {len(found)} wrong (Kubernetes {version}, strict)\n"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
