"""The gateway's certificate, which may be replaced while it serves."""

from pathlib import Path
from typing import Any, Final, NamedTuple

import grpc
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

log = structlog.get_logger(__name__)

Stamp = tuple[tuple[int, int, int], ...]


class TlsFilesError(ValueError):
    """The files cannot be used; says why, without quoting them."""


class TlsFiles(NamedTuple):
    """Where certificate, key and authorities are, PEM.

    client_ca: whose certificates callers must have; "" asks callers for none.
    """

    certificate: str
    key: str
    client_ca: str = ""


class Certificates:
    """Reads the files again when they have changed, before a handshake."""

    def __init__(self, files: TlsFiles) -> None:
        """TlsFilesError if they cannot be used."""
        self._files = files
        self._stamp = _stamp(files)
        self._first = _configuration(files)

    def credentials(self) -> grpc.ServerCredentials:
        """For a server's port. With authorities for callers, every caller needs a certificate."""
        newer: Any = self._newer  # may return None, whatever the types of gRPC say
        return grpc.dynamic_ssl_server_credentials(
            self._first, newer, require_client_authentication=bool(self._files.client_ca)
        )

    def _newer(self) -> grpc.ServerCertificateConfiguration | None:
        """What is new since the last handshake; None keeps what there is.

        gRPC calls it in threads of its own, one handshake at a time. It must not raise.
        """
        try:
            stamp = _stamp(self._files)
            if stamp == self._stamp:
                return None
            # Also if they cannot be used: half-written files get another stamp once they are whole.
            self._stamp = stamp
            found = _configuration(self._files)
        except TlsFilesError as error:
            log.error("tls_files_unusable", why=str(error), meaning="the earlier ones stay")
            return None
        log.info("tls_files_taken")
        return found


_STATED: Final = ("certificate", "key", "client_ca")


def _stamp(files: TlsFiles) -> Stamp:
    """What changes when a file does. TlsFilesError if one is not there."""
    try:
        stats = [Path(path).stat() for path in files if path]
    except OSError as error:
        raise TlsFilesError(f"{error.filename}: {error.strerror}") from error
    # The inode counts too: Kubernetes replaces a ConfigMap by a link to a new folder, maybe within
    # the same second.
    return tuple((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in stats)


def _configuration(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    texts = dict.fromkeys(_STATED, b"")
    for name, path in zip(_STATED, files, strict=True):
        if path:
            try:
                texts[name] = Path(path).read_bytes()
            except OSError as error:
                raise TlsFilesError(f"{path}: {error.strerror}") from error
    _check(files, texts["certificate"], texts["key"], texts["client_ca"])
    return grpc.ssl_server_certificate_configuration(
        [(texts["key"], texts["certificate"])], texts["client_ca"] or None
    )


def _check(files: TlsFiles, certificate: bytes, key: bytes, client_ca: bytes) -> None:
    """GRPC would take files that do not fit each other, and fail every handshake."""
    try:
        shown = x509.load_pem_x509_certificates(certificate)[0].public_key()
    except (ValueError, IndexError) as error:
        raise TlsFilesError(f"{files.certificate} holds no PEM certificate") from error
    try:
        kept = load_pem_private_key(key, None).public_key()
    except (ValueError, TypeError) as error:
        raise TlsFilesError(f"{files.key} holds no PEM key without a password") from error
    # Compared as public keys, which are the same for every file format of a key.
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if shown.public_bytes(*form) != kept.public_bytes(*form):
        raise TlsFilesError(f"{files.key} is not the key of {files.certificate}")
    if client_ca or files.client_ca:
        try:
            x509.load_pem_x509_certificates(client_ca)
        except ValueError as error:
            raise TlsFilesError(f"{files.client_ca} holds no PEM certificate") from error
