"""What a deployment has for security: a certificate, an issuer's keys, and a caller's token."""

import json
import time
from pathlib import Path
from typing import Final

from gateway.testing_identity import AUDIENCE, Authority, Issuer

OWNER: Final = "bench"
TOKEN_SECONDS: Final = 3600


class Secured:
    """The files in a folder, and the token."""

    def __init__(self, folder: Path) -> None:
        authority, issuer = Authority(folder), Issuer()
        self.ca = authority.ca
        self.certificate, self.key, _ = authority.issue("server")
        self._url = issuer.url = "https://issuer.example"
        # As FastAPI's process finds it (peers/web.py).
        self._keys = folder / "jwks.json"
        self._keys.write_text(json.dumps(issuer.jwks()))
        self.token = issuer.token(OWNER, exp=int(time.time()) + TOKEN_SECONDS)

    def settings(self) -> dict[str, object]:
        """Of a gateway."""
        return {
            "identity": "jwt",
            "jwt_issuer": self._url,
            "jwt_audience": AUDIENCE,
            "jwt_keys": self._keys,
            "role_bindings": f"{OWNER}=submitter",
            "tls_certificate_file": self.certificate,
            "tls_key_file": self.key,
            "single_owner": "",
        }
