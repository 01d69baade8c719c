"""Models by the client and the command."""

import json

import pytest
from fluoro.v1.model_pb2 import Model
from fluoro_client import AsyncClient, Client, FluoroApiError

READY, UNAVAILABLE = Model.STATE_READY, Model.STATE_UNAVAILABLE


@pytest.fixture
def models(gateway):
    """Two versions of a model, of which the newer one is bad."""
    good = Model(
        name="models/moles/versions/1.0.0",
        state=READY,
        summary="Benign or \x1b[31mnot",
        intended_use=Model.INTENDED_USE_DEMONSTRATION,
        license="Apache-2.0",
        labels=[{"value": 0, "display_name": "benign"}],
        outputs=[{"name": "y", "dtype": "float32", "shape": ["n", "2"], "kind": "classes"}],
        deployments=[{"state": READY, "workers": 2, "execution_provider": "CPUExecutionProvider"}],
        card="# moles\n\nA card.",
    )
    bad = Model(
        name="models/moles/versions/2.0.0",
        state=UNAVAILABLE,
        deployments=[
            {
                "state": UNAVAILABLE,
                "problem": Model.PROBLEM_WARM_UP_DIFFERS,
                "message": "The warm-up gives other values of y.",
                "workers": 1,
            }
        ],
    )
    gateway.models.extend([good, bad])
    return gateway.models


async def test_both_clients_list_models_and_get_one_with_its_card(gateway, models):
    async with AsyncClient(gateway.endpoint, owner="ada") as client:
        found = [model async for model in client.models()]
        one = await client.model("moles@1.0.0")
        with pytest.raises(FluoroApiError, match="MODEL_UNKNOWN"):
            await client.model("moles@3.0.0")
    with Client(gateway.endpoint, owner="ada") as client:
        assert list(client.models()) == found
        assert client.model("moles") == one == models[0]
    assert [(model.name, model.card) for model in found] == [(m.name, "") for m in models]


@pytest.mark.usefixtures("models")
async def test_the_command_lists_models_and_shows_one(fluoro):
    code, out, _ = await fluoro("models")
    assert code == 0
    lines = out.splitlines()
    assert lines[1].split()[:5] == ["moles@1.0.0", "ready", "2/2", "demonstration", "classes"]
    assert lines[2].split()[:3] == ["moles@2.0.0", "unavailable", "0/1"]
    assert "\x1b" not in out, "what a terminal would obey is written out"
    code, out, _ = await fluoro("models", "moles")
    assert "2 workers: ready on CPUExecutionProvider" in out
    assert out.endswith("# moles\n\nA card.\n")
    code, out, _ = await fluoro("models", "moles@2.0.0")
    assert "1 worker: WARM_UP_DIFFERS  The warm-up gives other values of y." in out
    code, out, _ = await fluoro("models", "moles@1.0.0", "--output", "json")
    assert json.loads(out)["card"] == "# moles\n\nA card."
    code, out, _ = await fluoro("models", "--output", "json")
    assert len(json.loads(out)["models"]) == 2
    assert (await fluoro("models", "no"))[0] == 3
