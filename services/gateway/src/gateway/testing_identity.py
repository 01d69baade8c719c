"""For tests of identity: an issuer of tokens on loopback, with real keys behind a real JWKS."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, TypeAlias

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
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
