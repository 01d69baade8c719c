"""For tests of identity: who issues tokens, on loopback with a real JWKS, and certificates."""

import ipaddress
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, TypeAlias

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

AUDIENCE: Final = "fluoro"

PrivateKey: TypeAlias = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


class Issuer:
    """Signs tokens, and serves the keys to check them with."""

    def __init__(self) -> None:
        self.keys: dict[str, PrivateKey] = {}
        self.away = False
        """Whether it answers 503."""
        self.requests: list[tuple[str, str]] = []
        """Path and authorization of what was asked for."""
        self.add_key("first")
        self.url = ""

    def add_key(self, key_id: str, algorithm: str = "RS256") -> None:
        """A new key, in the JWKS from now on."""
        self.keys[key_id] = (
            rsa.generate_private_key(public_exponent=65537, key_size=2048)
            if algorithm == "RS256"
            else ec.generate_private_key(ec.SECP256R1())
        )

    def token(self, owner: str = "ada", key_id: str = "first", **claims: Any) -> str:
        """A token that is good for a minute. claims: None leaves one out."""
        key = self.keys[key_id]
        body = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": owner,
            "exp": int(time.time()) + 60,
            **claims,
        }
        return jwt.encode(
            {name: value for name, value in body.items() if value is not None},
            key,
            algorithm="RS256" if isinstance(key, rsa.RSAPrivateKey) else "ES256",
            headers={"kid": key_id},
        )

    def jwks(self) -> dict[str, Any]:
        """The public halves, RFC 7517."""
        return {
            "keys": [
                {
                    "kid": id_,
                    "use": "sig",
                    **(
                        RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
                        if isinstance(key, rsa.RSAPrivateKey)
                        else ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
                    ),
                }
                for id_, key in self.keys.items()
            ]
        }


@contextmanager
def issuing() -> Iterator[Issuer]:
    """An issuer that serves."""
    issuer = Issuer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.requests.append((self.path, self.headers.get("authorization", "")))
            documents: dict[str, Any] = {
                "/.well-known/openid-configuration": {
                    "issuer": issuer.url,
                    "jwks_uri": f"{issuer.url}/keys",
                },
                "/keys": issuer.jwks(),
            }
            body = json.dumps(documents.get(self.path)).encode()
            self.send_response(503 if issuer.away else 200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        issuer.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield issuer
        finally:
            server.shutdown()
            thread.join()


DAY_SECONDS: Final = 86_400


class Authority:
    """Issues certificates as files."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.ca = folder / f"{name}.pem"
        builder = self._builder(self._subject, self._key.public_key())
        builder = builder.add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        self.ca.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))

    def issue(
        self, name: str, common_name: str = "", *, spiffe_id: str = "", seconds: float = DAY_SECONDS
    ) -> tuple[Path, Path, int]:
        """Files NAME.crt and NAME.key, replaced one after the other, and the serial number.

        For servers on loopback and for clients. seconds: how long the certificate is good.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [
            x509.DNSName("localhost"),
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        ]
        if spiffe_id:
            names.append(x509.UniformResourceIdentifier(spiffe_id))
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name or name)])
        certificate = (
            self._builder(subject, key.public_key(), seconds)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        paths = self._folder / f"{name}.crt", self._folder / f"{name}.key"
        paths[0].write_bytes(certificate.public_bytes(Encoding.PEM))
        paths[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return *paths, certificate.serial_number

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, seconds: float = DAY_SECONDS
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(seconds=seconds))
        )
