"""What `fluoro models` prints for people."""

from collections.abc import Iterable

from fluoro.v1.model_pb2 import Model, ModelDeployment, ModelTensor
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fluoro_client.present import plain_table, visible


def models_table(models: Iterable[Model]) -> Table:
    """One line per version."""
    table = plain_table("MODEL", "STATE", "WORKERS", "FOR", "GIVES", "SUMMARY")
    for model in models:
        serving = [one.workers for one in model.deployments if one.state == Model.STATE_READY]
        there = sum(one.workers for one in model.deployments)
        table.add_row(
            _title(model),
            _state(model.state),
            f"{sum(serving)}/{there}",
            _use(model),
            " ".join(tensor.kind for tensor in model.outputs),
            visible(model.summary),
        )
    return table


def model_view(model: Model) -> RenderableType:
    """A model with what workers say of it, and its card."""
    head = Text.assemble((_title(model), "bold"), "  ", _state(model.state))
    parts: list[RenderableType] = [head, Text(visible(model.summary))]
    facts = {
        "For": _use(model),
        "License": model.license,
        "Source": model.source,
        "Trained on": model.training_data,
        "Takes": ", ".join(map(_tensor, model.inputs)),
        "Gives": ", ".join(map(_tensor, model.outputs)),
        "Labels": ", ".join(label.display_name for label in model.labels[:20])
        + (f" and {len(model.labels) - 20} more" if len(model.labels) > 20 else ""),  # noqa: PLR2004 - as above
        "SHA-256": model.sha256.hex(),
    }
    parts += [
        Text.assemble((f"{name}: ", "dim"), visible(fact)) for name, fact in facts.items() if fact
    ]
    parts += [_deployment(one) for one in model.deployments]
    # As it is written: Markdown is made to be read so, and can be copied.
    card = "\n".join(map(visible, model.card.splitlines()))
    return Group(*parts, "", Text(card)) if card else Group(*parts)


def _title(model: Model) -> str:
    """`ct-tissue@1.0.0`, as commands take it."""
    _, name, _, version = model.name.split("/")
    return f"{name}@{version}"


def _state(state: "Model.State.ValueType") -> Text:
    word = Model.State.Name(state).removeprefix("STATE_").lower()
    return Text(word, "green" if state == Model.STATE_READY else "red")


def _use(model: Model) -> str:
    return Model.IntendedUse.Name(model.intended_use).removeprefix("INTENDED_USE_").lower()


def _tensor(tensor: ModelTensor) -> str:
    kind = f" ({tensor.kind})" if tensor.kind else ""
    return f"{tensor.name} {tensor.dtype}[{', '.join(tensor.shape)}]{kind}"


def _deployment(one: ModelDeployment) -> Text:
    workers = f"{one.workers} worker" if one.workers == 1 else f"{one.workers} workers"
    if one.state == Model.STATE_READY:
        return Text.assemble(f"{workers}: ", ("ready", "green"), f" on {one.execution_provider}")
    problem = Model.Problem.Name(one.problem).removeprefix("PROBLEM_")
    return Text.assemble(f"{workers}: ", (problem, "red"), f"  {visible(one.message)}")
