"""Decides at submit what each step works on, and refuses graphs that show originals by accident.

Pure. docs/adr/0015-inputs-of-steps.md has the reasons, and worked examples.
"""

from collections.abc import Iterable, Iterator, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Final, NamedTuple

from fluoro.v1 import job_pb2

from fluoro_jobs.errors import FieldViolation, FluoroError, Reason
from fluoro_jobs.operations import JOB_INPUT, Operation

MAX_NAMES: Final = 12
"""Most names of steps that a refusal lists; one is up to 63 characters."""


class Source(NamedTuple):
    """Where a step's inputs come from: artifacts of one role that a step left, or the job's inputs.

    step: ordinal; None for the job's inputs, whose role is `JOB_INPUT`. group: those whose keys
    differ only in the last part are one input.
    """

    step: int | None
    role: str
    group: bool = False


ORIGINALS: Final = (Source(None, JOB_INPUT),)
"""The job's inputs, each on its own."""


class Wired(NamedTuple):
    """A step's place in the graph.

    after: ordinals of the steps that it waits for, ascending. sources: what it works on, in order;
    empty for an operation that has no items. named: whether the caller named them.
    """

    after: Sequence[int]
    sources: Sequence[Source]
    named: bool

    @property
    def reads_originals(self) -> bool:
        """Whether it works on inputs of the job."""
        return any(source.step is None for source in self.sources)


def wire(steps: Sequence[job_pb2.Step], operations: Sequence[Operation]) -> list[Wired]:
    """What each step waits for and works on. operations: those of the steps, in the same order.

    FluoroError INVALID_ARGUMENT for a name used twice, STEP_UNKNOWN, STEP_GRAPH_CYCLE,
    STEP_INPUT_MISMATCH, STEP_INPUT_MISSING or STEP_SEES_IDENTIFIABLE, with the field named.
    """
    if (
        len(steps) == 1 and not steps[0].after and not steps[0].inputs
    ):  # most jobs, at half the cost
        graph = _Graph(steps, operations, [()], (0,))
        return [Wired((), _default(graph, 0), named=False)]
    ordinals = _ordinals(steps)
    after = [sorted({ordinals[name] for name in _waits_for(step)}) for step in steps]
    graph = _Graph(steps, operations, after, _in_order(steps, after))
    wired = []
    for i, step in enumerate(steps):
        named = list(_named(graph, i, ordinals)) if step.inputs else []
        # A step may name the same source twice; worked on twice, its items would have the same
        # keys.
        sources = tuple(dict.fromkeys(named)) if named else _default(graph, i)
        wired.append(Wired(after[i], sources, bool(named)))
    # Without a de-identifying step nobody expects the originals to be gone.
    if any(operation.deidentifies for operation in operations):
        _check_deidentified(graph, wired)
    return wired


class _Graph(NamedTuple):
    """Steps, their operations and edges. order: ordinals, each after all that it waits for."""

    steps: Sequence[job_pb2.Step]
    operations: Sequence[Operation]
    after: Sequence[Sequence[int]]
    order: Sequence[int]


def _waits_for(step: job_pb2.Step) -> list[str]:
    """Names of the steps that it comes after, or whose artifacts it takes."""
    return [*step.after, *(source.step for source in step.inputs if source.step)]


def _ordinals(steps: Sequence[job_pb2.Step]) -> dict[str, int]:
    """Step names to their numbers, once names are unique and all that are mentioned exist."""
    ordinals: dict[str, int] = {}
    for i, step in enumerate(steps):
        if step.name in ordinals:
            violation = FieldViolation(f"job.steps[{i}].name", "Step names are unique in a job.")
            raise FluoroError(
                Reason.INVALID_ARGUMENT, f"Two steps are named {step.name}.", [violation]
            )
        ordinals[step.name] = i
    for i, step in enumerate(steps):
        mentioned = [(name, f"after[{k}]") for k, name in enumerate(step.after)]
        mentioned += [
            (source.step, f"inputs[{k}].step")
            # An empty name stands for the job's inputs.
            for k, source in enumerate(step.inputs)
            if source.step
        ]
        for name, field in mentioned:
            if name not in ordinals:
                raise FluoroError(
                    Reason.STEP_UNKNOWN,
                    f"Step {step.name} names a step that is not in the job.",
                    [
                        FieldViolation(
                            f"job.steps[{i}].{field}", f"Must be one of {some(list(ordinals))}."
                        )
                    ],
                )
    return ordinals


def _in_order(steps: Sequence[job_pb2.Step], after: Sequence[Sequence[int]]) -> Sequence[int]:
    """Ordinals, each after those it waits for. FluoroError STEP_GRAPH_CYCLE if none exists."""
    # `after` is sorted, so the last one is the highest.
    if all(not waits or waits[-1] < i for i, waits in enumerate(after)):
        return range(len(after))  # steps in the order they run in, as most write them
    try:
        return tuple(TopologicalSorter(dict(enumerate(after))).static_order())
    # graphlib gives the circle with its first step repeated at the end, as a reader wants to see
    # it.
    except CycleError as error:
        circle = error.args[1]
        drawn = some([steps[i].name for i in circle], " -> ")
        violation = FieldViolation(f"job.steps[{circle[0]}].after", f"Part of a circle: {drawn}.")
        raise FluoroError(
            Reason.STEP_GRAPH_CYCLE, f"Steps wait for each other: {drawn}.", [violation]
        ) from None


def _named(graph: _Graph, i: int, ordinals: dict[str, int]) -> Iterator[Source]:
    """The sources that a step names. FluoroError STEP_INPUT_MISMATCH if it cannot take one."""
    reads = graph.operations[i].reads
    groups: dict[tuple[int | None, str], bool] = {}
    for k, named in enumerate(graph.steps[i].inputs):
        step = ordinals[named.step] if named.step else None
        leaves = (JOB_INPUT,) if step is None else graph.operations[step].leaves
        fitting = [role for role in reads if role in leaves and named.role in {"", role}]
        if not fitting:
            whose = "The job's inputs have" if step is None else f"Step {named.step} leaves"
            raise FluoroError(
                Reason.STEP_INPUT_MISMATCH,
                f"Step {graph.steps[i].name} cannot work on this.",
                [
                    FieldViolation(
                        f"job.steps[{i}].inputs[{k}].{'role' if named.role else 'step'}",
                        f"{whose} {_roles(leaves)}; {graph.operations[i].field} reads "
                        f"{_roles(reads)}.",
                    )
                ],
            )
        # It would look at the first part of each group, and succeed without the others.
        if named.group and not graph.operations[i].groups:
            raise FluoroError(
                Reason.STEP_INPUT_MISMATCH,
                f"Step {graph.steps[i].name} cannot work on groups.",
                [
                    FieldViolation(
                        f"job.steps[{i}].inputs[{k}].group",
                        f"Leave it out: {graph.operations[i].field} takes each input on its own.",
                    )
                ],
            )
        for role in fitting:
            # The same files one by one and in groups would be items twice, under keys that cannot
            # be told apart.
            if groups.setdefault((step, role), named.group) != named.group:
                raise FluoroError(
                    Reason.STEP_INPUT_MISMATCH,
                    f"Step {graph.steps[i].name} takes the same twice.",
                    [
                        FieldViolation(
                            f"job.steps[{i}].inputs[{k}].group",
                            f"An entry before it takes `{role}` the other way. Keep one of them.",
                        )
                    ],
                )
            yield Source(step, role, named.group)


def _default(graph: _Graph, i: int) -> Sequence[Source]:
    """What a step works on that names nothing: the nearest before it, or else the job's inputs.

    FluoroError STEP_INPUT_MISSING if it can read neither.
    """
    operation = graph.operations[i]
    # Companion roles do not replace the files. They are added once there are files.
    reads = [role for role in operation.reads if role not in operation.beside]
    if not reads:
        return ()
    found = _taken(graph, i, reads) or (ORIGINALS if JOB_INPUT in reads else ())
    if found:
        return (*found, *(one for role in operation.beside for one in _taken(graph, i, [role])))
    raise FluoroError(
        Reason.STEP_INPUT_MISSING,
        f"Step {graph.steps[i].name} has nothing to work on.",
        [
            FieldViolation(
                f"job.steps[{i}].after",
                f"Name a step that leaves {_roles(reads)}, here or in inputs.",
            )
        ],
    )


def _taken(graph: _Graph, i: int, roles: Sequence[str]) -> Sequence[Source]:
    """What the nearest steps before step i leave in these roles."""
    nearest = _nearest(graph, i, roles) if graph.after[i] else ()
    return tuple(
        Source(step, role)
        for step in nearest
        for role in roles
        if role in graph.operations[step].leaves
    )


def _nearest(graph: _Graph, i: int, reads: Sequence[str]) -> Sequence[int]:
    """The last steps before step i that leave one of these roles: none of them leads to another.

    Sets of steps are bits of a number: a job may have 100 steps and nearly 5,000 edges.
    """
    found, before = [0] * len(graph.after), [0] * len(graph.after)
    for step in graph.order:
        for earlier in graph.after[step]:
            # The search passes through a step that leaves nothing of use, to the steps before it.
            leaves = not set(reads).isdisjoint(graph.operations[earlier].leaves)
            found[step] |= 1 << earlier if leaves else found[earlier]
            before[step] |= 1 << earlier | before[earlier]
        # In topological order, so nothing behind it matters.
        if step == i:
            break
    candidates = list(_bits(found[i]))
    # What a later step made of it takes the place of what an earlier one left.
    hidden = [before[step] for step in candidates]
    return [step for step in candidates if not any(earlier >> step & 1 for earlier in hidden)]


def _check_deidentified(graph: _Graph, wired: Sequence[Wired]) -> None:
    """FluoroError STEP_SEES_IDENTIFIABLE if a step sees what identifies a patient, unsaid.

    Steps that leave files and lead to the first de-identifying one may see it: they prepare its
    input.
    """
    leading = cleaned = 0
    for step in reversed(graph.order):
        if graph.operations[step].deidentifies or leading >> step & 1:
            leading |= sum(1 << earlier for earlier in graph.after[step])
    for step in graph.order:
        if any(graph.operations[k].deidentifies or cleaned >> k & 1 for k in graph.after[step]):
            cleaned |= 1 << step
    # Between two de-identifying steps nobody expects the originals any more. What leaves nothing
    # prepares nothing: it may send the originals to a PACS.
    leaving = sum(1 << i for i, operation in enumerate(graph.operations) if operation.leaves)
    preparing = leading & ~cleaned & leaving
    identifiable = [False] * len(wired)
    for step in graph.order:
        # This step must see the originals, and what it leaves is clean.
        if graph.operations[step].deidentifies:
            continue
        place = wired[step]
        sources = [source.step for source in place.sources]
        # Steps that it only waits for count too: an operation may read their results, which hold
        # header texts.
        before = dict.fromkeys([*sources, *place.after])
        seen = [earlier for earlier in before if earlier is None or identifiable[earlier]]
        # A step that fetches from a PACS brings originals of its own, whatever it works on.
        identifiable[step] = bool(seen) or graph.operations[step].brings_originals
        unnamed = [earlier for earlier in seen if not (place.named and earlier in sources)]
        if unnamed and not (preparing >> step & 1 or graph.steps[step].allow_identifiable):
            raise _sees_identifiable(graph, step, unnamed[0])


def _sees_identifiable(graph: _Graph, step: int, what: int | None) -> FluoroError:
    seen = "the job's inputs" if what is None else f"what step {graph.steps[what].name} left"
    cleaning = [
        each.name
        for each, operation in zip(graph.steps, graph.operations, strict=True)
        if operation.deidentifies
    ]
    return FluoroError(
        Reason.STEP_SEES_IDENTIFIABLE,
        f"Step {graph.steps[step].name} would see data that identifies a patient.",
        [
            FieldViolation(
                f"job.steps[{step}].inputs",
                f"It would see {seen}. Take what a de-identifying step ({some(cleaning)}) left, "
                "or set allow_identifiable.",
            )
        ],
    )


def _bits(number: int) -> Iterator[int]:
    return (i for i in range(number.bit_length()) if number >> i & 1)


def _roles(roles: Iterable[str]) -> str:
    return " or ".join(f"`{role}`" for role in roles) or "no files"


def some(step_names: Sequence[str], between: str = ", ") -> str:
    """As many of the names as fit into a refusal."""
    more = [f"and {len(step_names) - MAX_NAMES} more"] if len(step_names) > MAX_NAMES else []
    return between.join([*step_names[:MAX_NAMES], *more])
