"""Samples of different callers in one run: who shares it, who fails alone, who leaves."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from fluoro.v1.model_pb2 import Model as About
from fluoro_jobs.errors import CancelledAttempt, FluoroError, Reason
from ml_worker import batching
from ml_worker.gpu_memory import check_room
from ml_worker.manifest import ModelRefusedError
from ml_worker.registry import Registry
from ml_worker.repository import read_model
from ml_worker.running import run_bound
from ml_worker.sessions import Model, open_model
from ml_worker.settings import ModelSettings
from ml_worker.testing import write_model
from ml_worker.waiting import Alone, Waiting, Work
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from prometheus_client import REGISTRY

PATIENCE_SECONDS = 30
GOOD, NOT_A_NUMBER, ENDLESS, POISON = 0.0, 1.0, 2.0, 3.0
"""First number of a sample: what it does to `awkward`."""

MANIFEST = """
name = "{name}"
version = "1.0.0"
summary = "For tests of batches."
intended_use = "demonstration"
license = "Apache-2.0"
source = "A test."
training_data = "None."
labels = [{{ value = 0, display_name = "a" }}, {{ value = 1, display_name = "b" }}]
batch = {{ {batch}, bytes_per_voxel = 8 }}
[[inputs]]
name = "x"
dtype = "float32"
layout = "NF"
shape = ["n", 2]
[[outputs]]
kind = "classes"
name = "y"
dtype = "float32"
shape = ["n", 2]
"""
WAITS = "max = 4, max_delay_seconds = 10"
"""Runs begin when there are four samples."""
Open = Callable[..., Model]


def model_of(
    nodes: Sequence[Any], constants: Mapping[str, NDArray[Any]], opset: int = 21
) -> ModelProto:
    sides = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in ("x", "y")
    ]
    weights = [numpy_helper.from_array(values, name) for name, values in constants.items()]
    made = helper.make_graph(nodes, "test", sides[:1], sides[1:], weights)
    return helper.make_model(made, ir_version=10, opset_imports=[helper.make_opsetid("", opset)])


def awkward_graph() -> ModelProto:
    """Doubles, unless a sample's first number says otherwise."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Sin", ["state"], ["next_state"]),
        ],
        "body",
        [
            value("round", TensorProto.INT64, []),
            value("go", TensorProto.BOOL, []),
            value("state", TensorProto.FLOAT, []),
        ],
        [value("go_on", TensorProto.BOOL, []), value("next_state", TensorProto.FLOAT, [])],
    )
    node = helper.make_node
    nodes = [
        node("Gather", ["x", "zero"], ["kind"], axis=1),
        node("Cast", ["kind"], ["place"], to=TensorProto.INT64),
        node("Gather", ["factors", "place"], ["factor"]),  # fails out of the table's bounds
        node("Gather", ["rounds_of", "place"], ["each"]),
        node("ReduceMax", ["each"], ["rounds"], keepdims=0),
        node("Loop", ["rounds", "", "nought"], ["last"], body=body),
        node("Unsqueeze", ["factor", "one"], ["column"]),
        node("Mul", ["x", "column"], ["scaled"]),
        node("Add", ["scaled", "last"], ["y"]),
    ]
    constants: dict[str, NDArray[Any]] = {
        "zero": np.array(0),
        "one": np.array([1]),
        "factors": np.array([2, np.nan, 2], np.float32),
        "rounds_of": np.array([0, 0, 2**62]),
        "nought": np.array(0, np.float32),
    }
    return model_of(nodes, constants)


def greedy_graph() -> ModelProto:
    """Adds nought, for which it needs 2^(12 samples) numbers: four samples need a petabyte."""
    node = helper.make_node
    nodes = [
        node("Shape", ["x"], ["samples"], start=0, end=1),
        node("Mul", ["samples", "twelve"], ["power"]),
        node("Cast", ["power"], ["exponent"], to=TensorProto.DOUBLE),
        node("Pow", ["two", "exponent"], ["many"]),
        node("Cast", ["many"], ["shape"], to=TensorProto.INT64),
        node("ConstantOfShape", ["shape"], ["large"]),
        node("ReduceSum", ["large"], ["nought"], keepdims=0),
        node("Add", ["x", "nought"], ["y"]),
    ]
    return model_of(nodes, {"twelve": np.array([12]), "two": np.array([2.0])})


@pytest.fixture
def awkward(tmp_path: Path) -> Open:
    """Opens `awkward`, by its [batch]; keywords go into the settings."""

    def opened(batch: str, name: str = "awkward", **settings: Any) -> Model:
        x: NDArray[Any] = np.array([[GOOD, 5]], np.float32)
        graph = awkward_graph().SerializeToString()
        text = MANIFEST.format(name=name, batch=batch)
        place = write_model(tmp_path, text, graph, {"x": x, "y": 2 * x})
        return open_model(read_model(place), ModelSettings(**settings))

    return opened


class Callers:
    """Threads that each show a model one sample."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._pool = ThreadPoolExecutor(64)

    def show(self, kind: float, number: float = 0, caller: Alone | None = None) -> Future[Any]:
        x: NDArray[Any] = np.array([[kind, number]], np.float32)
        return self._pool.submit(self._shown, x, caller or Alone())

    def _shown(self, x: NDArray[Any], caller: Alone) -> Any:
        return self._model.run({"x": x}, caller)["y"].tolist()

    def until_waiting(self, samples: int) -> None:
        """Returns once so many samples wait for their run."""
        waiting = self._model.batcher
        deadline = time.monotonic() + PATIENCE_SECONDS
        while waiting.waiting_samples() != samples:
            assert time.monotonic() < deadline


def answer(future: Future[Any]) -> Any:
    """What came of it: the outputs, or the reason."""
    try:
        return future.result(PATIENCE_SECONDS)
    except FluoroError as error:
        return error.reason


def counted(metric: str, model: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"fluoro_model_{metric}", {"model": model, **labels}) or 0


def test_callers_who_come_at_the_same_time_share_a_run_and_each_gets_its_own_answer(
    awkward: Open,
) -> None:
    callers = Callers(awkward(WAITS, "shared"))
    runs, samples = (counted(f"run_samples_{each}", "shared") for each in ("count", "sum"))
    answers = [callers.show(GOOD, number) for number in range(8)]
    assert [answer(one) for one in answers] == [[[0, 2 * number]] for number in range(8)]
    assert counted("run_samples_count", "shared") == runs + 2
    assert counted("run_samples_sum", "shared") == samples + 8


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (POISON, Reason.MODEL_RUN_FAILED),
        (NOT_A_NUMBER, Reason.MODEL_OUTPUT_INVALID),
        (ENDLESS, Reason.MODEL_RUN_TIMEOUT),
    ],
)
def test_an_image_that_a_model_cannot_work_on_fails_alone(
    awkward: Open, kind: float, reason: Reason
) -> None:
    callers = Callers(awkward(WAITS, run_seconds=0.3))
    answers = [callers.show(one, 5) for one in (GOOD, kind, GOOD, GOOD)]
    assert [answer(one) for one in answers] == [[[0, 10]], reason, [[0, 10]], [[0, 10]]]


def test_an_image_for_which_a_model_gives_nothing_fails_alone(tmp_path: Path) -> None:
    node = helper.make_node
    # Gives no row for poison, so the others' rows are not where they should be.
    nodes = [
        node("Gather", ["x", "zero"], ["kind"], axis=1),
        node("Less", ["kind", "poison"], ["is_kept"]),
        node("Add", ["x", "x"], ["twice"]),
        node("Compress", ["twice", "is_kept"], ["y"], axis=0),
    ]
    constants = {"zero": np.array(0), "poison": np.array(POISON, np.float32)}
    graph = model_of(nodes, constants).SerializeToString()
    x: NDArray[Any] = np.array([[GOOD, 5]], np.float32)
    place = write_model(
        tmp_path, MANIFEST.format(name="drops", batch=WAITS), graph, {"x": x, "y": 2 * x}
    )
    callers = Callers(open_model(read_model(place), ModelSettings()))
    answers = [callers.show(one, 5) for one in (GOOD, POISON, GOOD, GOOD)]
    good, invalid = [[0, 10]], Reason.MODEL_OUTPUT_INVALID
    assert [answer(one) for one in answers] == [good, invalid, good, good]


def test_who_is_cancelled_while_waiting_does_not_run(awkward: Open) -> None:
    callers, gone = Callers(awkward(WAITS, "left")), Alone()
    answers = [callers.show(GOOD), callers.show(GOOD), callers.show(ENDLESS, caller=gone)]
    callers.until_waiting(3)
    gone.cancelled.set()
    with pytest.raises(CancelledAttempt):
        answers.pop().result(PATIENCE_SECONDS)
    callers.until_waiting(2)
    answers += [callers.show(GOOD), callers.show(GOOD)]
    assert [answer(one) for one in answers] == [[[0, 0]]] * 4
    assert counted("runs_failed_total", "left", cause="left") == 0


def test_a_run_that_all_have_left_ends_at_once_and_the_next_one_begins(awkward: Open) -> None:
    callers, gone = Callers(awkward("max = 1")), Alone()
    stuck = callers.show(ENDLESS, caller=gone)
    callers.until_waiting(0)
    behind = callers.show(GOOD, 5)
    callers.until_waiting(1)
    gone.cancelled.set()
    with pytest.raises(CancelledAttempt):
        stuck.result(PATIENCE_SECONDS)
    assert answer(behind) == [[0, 10]]


def test_who_shares_a_run_with_one_that_never_ends_is_run_again_once_that_one_has_left(
    awkward: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "GRACE_SECONDS", 0.1)
    callers, gone = Callers(awkward(WAITS)), Alone()
    stuck = callers.show(ENDLESS, caller=gone)
    others = [callers.show(GOOD, 5) for _ in range(3)]
    callers.until_waiting(0)
    gone.cancelled.set()
    assert [answer(one) for one in others] == [[[0, 10]]] * 3
    with pytest.raises(CancelledAttempt):
        stuck.result(PATIENCE_SECONDS)


class Ladder(list[int]):
    """There is no memory to look at it for the first time."""

    was_looked_at = False

    def __iter__(self) -> Iterator[int]:
        if not self.was_looked_at:
            self.was_looked_at = True
            raise MemoryError
        return super().__iter__()


def test_a_thread_that_cannot_go_on_tells_who_waits_and_runs_what_comes_later() -> None:
    runs = iter([KeyboardInterrupt])

    def run(inputs: Mapping[str, NDArray[Any]], _rung: int, _options: object) -> dict[str, Any]:
        if panic := next(runs, None):
            raise panic
        return {"y": inputs["x"]}

    rules = batching.Rules(1, PATIENCE_SECONDS, lambda samples: samples, Ladder())
    batcher = batching.Batcher("m", "m 1.0.0", rules, run, lambda _: None, lambda: True)
    x: NDArray[Any] = np.ones((1, 2), np.float32)
    caller = Alone()

    def shown() -> Any:
        return batcher.result(batcher.submit({"x": x}, 4, caller))["y"].tolist()

    with ThreadPoolExecutor() as pool:
        try:
            answers = [answer(pool.submit(shown)) for _ in range(3)]
        finally:
            caller.cancelled.set()
    assert answers == [Reason.INTERNAL, Reason.INTERNAL, [[1, 1]]]


@pytest.fixture
def greedy(tmp_path: Path) -> Model:
    """Says that four samples may run at once, and has the memory for two."""
    x: NDArray[Any] = np.array([[1, 2]], np.float32)
    text = MANIFEST.format(name="greedy", batch="max = 4")
    graph = greedy_graph().SerializeToString()
    place = write_model(tmp_path, text, graph, {"x": x, "y": x})
    return open_model(read_model(place), ModelSettings())


def test_parts_of_one_image_set_that_do_not_fit_together_are_the_models_fault() -> None:
    sizes = iter([2, 3])
    batcher = batching.Batcher(
        "odd",
        "odd 1.0.0",
        batching.Rules(1, PATIENCE_SECONDS, lambda samples: samples, ()),
        lambda inputs, _rung, _options: {"boxes": np.zeros((len(inputs["x"]), next(sizes), 4))},
        lambda _found: None,
        lambda: True,
    )
    work = batcher.submit({"x": np.zeros((2, 1))}, 1, Alone())
    with pytest.raises(FluoroError, match="different sizes") as caught:
        batcher.result(work)
    assert caught.value.reason == Reason.MODEL_OUTPUT_INVALID


def test_a_run_without_memory_is_halved_and_the_next_ones_are_small_from_the_start(
    greedy: Model,
) -> None:
    four: NDArray[Any] = np.arange(8, dtype=np.float32).reshape(4, 2)
    for _ in range(2):
        assert np.array_equal(greedy.run({"x": four}, Alone())["y"], four)
        assert counted("runs_failed_total", "greedy", cause="out_of_memory") == 1


def test_a_model_is_refused_whose_largest_run_has_no_room_beside_the_others(
    greedy: Model, awkward: Open
) -> None:
    sample = {"x": np.array([[GOOD, 2]], np.float32)}
    with pytest.raises(ModelRefusedError, match="A run of 4 samples runs out of it") as caught:
        check_room(greedy, sample, 0)
    assert caught.value.problem == About.PROBLEM_NO_GPU_MEMORY
    fits = awkward("max = 4")
    check_room(fits, sample, 1000, lambda: 1000)
    check_room(fits, sample, 1000, lambda: None)
    with pytest.raises(ModelRefusedError, match="999 bytes of it are free"):
        check_room(fits, sample, 1000, lambda: 999)


def test_who_waits_for_a_model_whose_files_are_swapped_gets_the_answer_of_the_old_ones(
    tmp_path: Path, awkward: Open
) -> None:
    awkward(WAITS)
    registry = Registry(ModelSettings(models_folder=tmp_path))
    registry.open()
    callers = Callers(registry.find("awkward"))
    answers = [callers.show(GOOD, 5) for _ in range(3)]
    callers.until_waiting(3)
    (tmp_path / "awkward" / "1.0.0" / "model.onnx").write_bytes(greedy_graph().SerializeToString())
    registry.look()
    with pytest.raises(FluoroError) as caught:
        registry.find("awkward")
    assert caught.value.reason == Reason.MODEL_UNAVAILABLE
    answers.append(callers.show(GOOD, 5))
    assert [answer(one) for one in answers] == [[[0, 10]]] * 4


def test_a_model_whose_outputs_depend_on_the_other_samples_of_a_run_is_refused(
    tmp_path: Path,
) -> None:
    node = helper.make_node
    # Twice the number, if one of the run is above five.
    nodes = [
        node("ReduceMax", ["x"], ["largest"], keepdims=0),
        node("Greater", ["largest", "five"], ["any"]),
        node("Where", ["any", "x", "zero"], ["more"]),
        node("Add", ["x", "more"], ["y"]),
    ]
    constants: dict[str, NDArray[Any]] = {
        "five": np.array(5, np.float32),
        "zero": np.array(0, np.float32),
    }
    graph = model_of(nodes, constants).SerializeToString()
    x: NDArray[Any] = np.array([[1, 2], [6, 1]], np.float32)
    text = MANIFEST.format(name="mixes", batch="max = 4")
    place = write_model(tmp_path, text, graph, {"x": x, "y": x + x * (x.max() > 5)})
    with pytest.raises(ModelRefusedError, match="depend on what else is in the run"):
        open_model(read_model(place), ModelSettings())


# --- whose turn it is ---


def work(owner: str, samples: int = 1, size: int = 2) -> Work:
    return Work({"x": np.zeros((samples, size), np.float32)}, 4, Alone(owner))


def taken(waiting: Waiting) -> list[tuple[str, int]]:
    """Owners of the next run, and how many samples each has in it."""
    return [
        (one.work.caller.owner, one.stop - one.start) for one in waiting.take(lambda one: one.most)
    ]


def test_owners_take_turns_in_a_run_and_one_with_much_work_does_not_hold_up_the_others() -> None:
    waiting = Waiting(())
    for each in [work("a", 100), work("b"), work("c", 2)]:
        waiting.add(each)
    assert taken(waiting) == [("a", 2), ("b", 1), ("c", 1)]
    assert taken(waiting) == [("c", 1), ("a", 3)]
    assert taken(waiting) == [("a", 4)]


def test_owners_take_turns_with_shapes_that_do_not_fit_into_one_run() -> None:
    waiting = Waiting(())
    for each in [*(work("a", 4, size) for size in range(2, 9)), work("b", 1, 100)]:
        waiting.add(each)
    assert taken(waiting) == [("a", 4)]
    assert taken(waiting) == [("b", 1)]


@pytest.mark.parametrize(
    ("samples", "runs"), [(1, [1]), (2, [1, 1]), (3, [3]), (4, [4]), (5, [4, 1]), (7, [4, 3])]
)
def test_a_run_is_filled_up_a_little_and_otherwise_made_smaller(
    samples: int, runs: list[int]
) -> None:
    waiting = Waiting((1, 4))
    waiting.add(work("a", samples))
    found = []
    while waiting:
        found += [taken(waiting)[0][1]]
    assert found == runs


def test_inputs_bound_to_a_device_give_the_same(awkward: Open) -> None:
    session = awkward("max = 4").session
    x: NDArray[Any] = np.array([[GOOD, 1], [GOOD, 2]], np.float32)
    (found,) = run_bound(session, ["y"], {"x": x}, ort.RunOptions(), "cpu")
    assert np.array_equal(found, 2 * x)
