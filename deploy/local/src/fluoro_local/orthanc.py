"""For tests: a real PACS, Debian's Orthanc with its DICOMweb plugin, on a port of loopback."""

import base64
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Final

from fluoro_local.folders import free_port
from fluoro_local.testing import tool

PLUGIN: Final = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"
SECONDS: Final = 30
"""For its start, and for one answer."""
USER: Final = "fluoro"
PASSWORD: Final = "of-tests-alone"  # noqa: S105 - it guards a PACS of one test, on loopback


@dataclass(frozen=True)
class Orthanc:
    """A PACS that runs. port: of its HTTP server on loopback."""

    port: int

    @property
    def url(self) -> str:
        """The base of its DICOMweb resources."""
        return f"http://127.0.0.1:{self.port}/dicom-web"

    @property
    def variables(self) -> dict[str, str]:
        """What a worker has to be told, but for the credentials."""
        return {
            "FLUORO_DICOMWEB_SOURCES": f"pacs={self.url}",
            "FLUORO_DICOMWEB_DESTINATIONS": f"pacs={self.url}",
            "FLUORO_DICOMWEB_NETWORKS": "127.0.0.0/8",
        }

    def ask(self, path: str, data: bytes = b"") -> bytes:
        """What its own API answers, which we have no hand in: to a POST if there is data."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        secret = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        headers = {"Authorization": f"Basic {secret}"}
        try:
            connection.request("POST" if data else "GET", path, data or None, headers)
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        if response.status != HTTPStatus.OK:
            raise OSError(f"{path}: {response.status}")
        return answer

    def add(self, file: bytes) -> str:
        """Gives it an instance, past DICOMweb. Its own id of that."""
        return str(json.loads(self.ask("/instances", file))["ID"])


@contextmanager
def orthanc(folder: Path, **configuration: Any) -> Iterator[Orthanc]:
    """One that keeps what it has in `folder`; configuration: changes of its own."""
    configured: dict[str, Any] = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "index"),
        "HttpPort": free_port(),
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {USER: PASSWORD},
        "StorageAccessOnFind": "Never",
        "Plugins": [PLUGIN],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        **configuration,
    }
    file = folder / "orthanc.json"
    file.write_text(json.dumps(configured))
    log = folder / "orthanc.log"
    with log.open("wb") as output:
        process = subprocess.Popen([tool("Orthanc"), str(file)], stdout=output, stderr=output)
    try:
        server = Orthanc(configured["HttpPort"])
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                server.ask("/dicom-web/studies")
                break
            except (OSError, HTTPException) as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(log.read_text()) from error
            threading.Event().wait(0.05)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
