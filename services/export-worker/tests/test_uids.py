"""The tables of UID names against pydicom's copy of PS3.6."""

import pytest
from export_worker.uids import SOP_CLASSES, TRANSFER_SYNTAXES
from pydicom.uid import UID


@pytest.mark.parametrize(("uid", "name"), [*TRANSFER_SYNTAXES.items(), *SOP_CLASSES.items()])
def test_names_are_those_of_the_standard(uid: str, name: str) -> None:
    assert UID(uid).name == name
