import itertools

import pytest
from fluoro_jobs.errors import FluoroError, Reason
from gateway.identity.bindings import Bindings
from gateway.identity.door import Door
from gateway.identity.metadata import Believed, named_owner
from gateway.identity.principal import Caller, Principal, Role
from gateway.identity.roles import needed
from gateway.identity.workloads import KUBERNETES, owner_of, owner_of_name, owner_of_spiffe

MISSING = FluoroError(Reason.OWNER_MISSING, "Who?")
VIEWER = frozenset({Role.VIEWER})


class Always:
    """A source to which every caller proves to be the same."""

    def __init__(self, principal: Principal) -> None:
        self.principal = principal

    async def authenticate(self, _caller: Caller) -> Principal:
        return self.principal


@pytest.mark.parametrize(
    ("metadata", "owner"),
    [((), "me"), ((("x", "y"), ("fluoro-owner", "a.b-c_d@e9")), "a.b-c_d@e9")],
)
async def test_the_owner_is_the_one_in_the_metadata_or_the_only_one_there_is(
    metadata: tuple[tuple[str, str], ...], owner: str
) -> None:
    principal = await Believed("none", VIEWER, "me").authenticate(Caller(metadata))
    assert principal == Principal(owner, VIEWER, "none")


@pytest.mark.parametrize("value", ["", "A", "a b", "a/b", "a" * 64, "ü", "a\n", b"a"])
def test_a_malformed_owner_is_refused(value: str | bytes) -> None:
    with pytest.raises(FluoroError, match="fluoro-owner") as caught:
        named_owner(Caller([("fluoro-owner", value)]))
    assert caught.value.reason == Reason.INVALID_ARGUMENT


def test_two_owners_are_refused() -> None:
    with pytest.raises(FluoroError, match="more than once"):
        named_owner(Caller([("fluoro-owner", "a"), ("fluoro-owner", "b")]))


async def test_a_call_of_nobody_is_refused_unless_the_gateway_is_for_one_user() -> None:
    door = Door([Believed("trusted-metadata", VIEWER)], MISSING)
    with pytest.raises(FluoroError) as caught:
        await door.admit("X", VIEWER, Caller([("x", "y")]))
    assert caught.value is MISSING


async def test_sources_are_asked_in_their_order() -> None:
    nobody, ann = Believed("none", VIEWER), Principal("ann", VIEWER, "first")
    door = Door([nobody, Always(ann), Always(Principal("bob", VIEWER, "second"))], MISSING)
    assert await door.admit("X", VIEWER, Caller()) == ann


async def test_only_an_operator_names_another_owner() -> None:
    named = Caller([("fluoro-owner", "bob")])
    with pytest.raises(FluoroError, match="role operator") as caught:
        await Door([Always(Principal("ann", VIEWER, "x"))], MISSING).admit("X", VIEWER, named)
    assert caught.value.reason == Reason.ROLE_MISSING
    operator = Principal("ann", frozenset({Role.OPERATOR}), "x")
    admitted = await Door([Always(operator)], MISSING).admit("X", {Role.OPERATOR}, named)
    assert (admitted.owner, admitted.name) == ("bob", "ann")


def test_a_call_without_a_line_in_the_table_stops_the_start() -> None:
    with pytest.raises(LookupError, match=r"roles\.py"):
        needed("fluoro.v1.JobService.Forgotten")


def test_roles_are_those_of_the_owner_of_everybody_and_of_the_token() -> None:
    bindings = Bindings("ann=operator+viewer,*=viewer,ann=worker")
    assert bindings.of("ann") == {Role.OPERATOR, Role.VIEWER, Role.WORKER}
    assert bindings.of("bob", [Role.SUBMITTER]) == {Role.SUBMITTER, Role.VIEWER}
    assert Bindings("").of("ann") == frozenset()


@pytest.mark.parametrize(
    ("subject", "owner"),
    [
        ("ada@clinic.example", "ada@clinic.example"),
        ("imaging.reporter", "imaging.reporter"),
        ("Ada", None),
        ("a:b", None),
    ],
)
def test_a_subject_is_an_owner_or_nobody(subject: str, owner: str | None) -> None:
    assert owner_of(subject, {}) == owner


def test_only_kubernetes_says_that_somebody_is_a_service_account() -> None:
    def owner(name: str, said: object) -> str | None:
        return owner_of(f"system:serviceaccount:imaging:{name}", {KUBERNETES: said})

    def account(name: str, namespace: str = "imaging") -> object:
        return {"namespace": namespace, "serviceaccount": {"name": name, "uid": "1"}, "pod": {}}

    assert owner("reporter", account("reporter")) == "imaging.reporter"
    assert owner("x" * 60, account("x" * 60)) is None
    for other in (None, 7, {}, {"namespace": "imaging", "serviceaccount": 7}):
        assert owner("reporter", other) is None
    assert owner("reporter", account("else")) is None
    assert owner("reporter", account("reporter", "else")) is None
    assert owner_of("system:serviceaccount:imaging:reporter", {}) is None, "whoever says so"


@pytest.mark.parametrize(
    ("spiffe_id", "owner"),
    [
        ("spiffe://clinic.example/ns/imaging/sa/reporter", "imaging.reporter"),
        ("spiffe://clinic.example/lab/scanner-3", "@lab@scanner-3"),
        ("spiffe://clinic.example/lab.scanner-3", "@lab.scanner-3"),
        ("spiffe://clinic.example/ns/Imaging/sa/reporter", None),
        ("spiffe://clinic.example/system:serviceaccount:imaging:reporter", None),
        ("spiffe://else/ns/imaging/sa/reporter", None),
        ("spiffe://clinic.example.org/lab", None),
        ("spiffe://clinic.example/", None),
    ],
)
def test_a_spiffe_id_of_the_trust_domain_is_an_owner(spiffe_id: str, owner: str | None) -> None:
    assert owner_of_spiffe(spiffe_id, "clinic.example") == owner


def test_no_two_spiffe_ids_are_one_owner() -> None:
    parts = ["ns", "sa", "a", "b", "a.b", "a@b", "b.sa"]
    ids = [
        f"spiffe://clinic.example/{'/'.join(path)}"
        for length in range(1, 5)
        for path in itertools.product(parts, repeat=length)
    ]
    owners = [owner for one in ids if (owner := owner_of_spiffe(one, "clinic.example"))]
    assert {"a.b", "@a@b", "@a.b"} <= set(owners)
    assert len(owners) == len(set(owners))


def test_a_common_name_is_no_service_account() -> None:
    assert owner_of_name("imaging.reporter") == "imaging.reporter"
    assert owner_of_name("system:serviceaccount:imaging:reporter") is None
