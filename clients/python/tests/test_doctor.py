"""`fluoro doctor`: what a client sees, and what the gateway tells operators."""

import json

from fluoro.v1.deployment_service_pb2 import Finding
from fluoro_client import Client
from fluoro_client.credentials import Tls
from fluoro_client.doctor import _encryption, _versions, is_here
from fluoro_client.profiles import Access
from fluoro_client.testing import Fault

EVICTION = Finding(
    check="eviction",
    level=Finding.LEVEL_FAULT,
    found="maxmemory-policy is allkeys-lru",
    advice="CONFIG SET maxmemory-policy noeviction",
)


async def test_a_deployment_without_faults_exits_with_0(gateway, fluoro):
    gateway.findings.append(Finding(check="schema", level=Finding.LEVEL_OK, found="0008"))
    code, out, err = await fluoro("doctor")
    assert (code, "ok  schema" in out, "0 faults, 0 warnings" in err) == (0, True, True)
    assert [line for line in out.splitlines() if line != line.rstrip()] == []


async def test_a_fault_is_shown_with_what_to_do_and_exits_with_1(gateway, fluoro):
    gateway.findings.append(EVICTION)
    code, out, err = await fluoro("doctor")
    assert (code, "1 fault," in err) == (1, True)
    assert "FAULT  eviction" in out
    assert "→ CONFIG SET maxmemory-policy noeviction" in out
    code, out, _ = await fluoro("doctor", "--output", "json")
    assert json.loads(out)["findings"][-1]["level"] == "LEVEL_FAULT"
    with Client(gateway.endpoint, owner="ada") as client:
        assert list(client.diagnose().findings) == [EVICTION]


async def test_who_may_not_look_hears_so_and_it_is_no_fault(gateway, fluoro):
    gateway.fail("DiagnoseDeployment", Fault("ROLE_MISSING"), Fault("METHOD_UNKNOWN"))
    code, out, _ = await fluoro("doctor")
    assert (code, "needs the role operator" in out) == (0, True)
    code, out, _ = await fluoro("doctor")
    assert (code, "of an earlier release" in out) == (0, True)
    gateway.fail("DiagnoseDeployment", Fault("LEDGER_UNAVAILABLE"))
    code, out, _ = await fluoro("doctor")
    assert (code, "python -m fluoro_jobs.doctor" in out) == (1, True)


async def test_a_refused_caller_and_an_absent_gateway_are_findings(
    gateway, fluoro, unused_tcp_port
):
    gateway.fail("ListPipelines", Fault("TOKEN_EXPIRED"))
    code, out, _ = await fluoro("doctor")
    assert (code, "TOKEN_EXPIRED" in out) == (1, True)
    code, out, _ = await fluoro("doctor", "--endpoint", f"127.0.0.1:{unused_tcp_port}")
    assert (code, "Is it the right address" in out) == (4, True)


def test_a_token_in_plain_text_and_another_version_are_warnings():
    warn, fine = Finding.LEVEL_WARNING, Finding.LEVEL_OK
    assert _encryption(Access("gateway.example:50051", "", "secret", None)).level == warn
    assert _encryption(Access("gateway.example:50051", "", "secret", Tls())).level == fine
    assert _encryption(Access("gateway.example:50051", "", None, None)).level == fine
    assert _encryption(Access("[::1]:50051", "", "secret", None)).level == fine
    assert is_here("127.0.0.1:1")
    assert is_here("localhost:1")
    assert not is_here("10.0.0.1:1")
    assert (_versions("0.1.9").level, _versions("9.0.0").level) == (fine, warn)
