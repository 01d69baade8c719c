"""The models of this process and their states; new versions are found while it runs."""

import re
import threading
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Final

import structlog
from fluoro.v1.model_pb2 import Model as ModelProto
from fluoro_jobs.errors import FluoroError, Reason

from ml_worker.bucket import Bucket
from ml_worker.describe import described
from ml_worker.devices import DeviceMissingError, check_device
from ml_worker.manifest import NAME, VERSION, ModelRefusedError
from ml_worker.repository import MAX_VERSIONS, Place, newest, places, read_model
from ml_worker.sessions import Model, open_model
from ml_worker.settings import ModelSettings

log = structlog.get_logger(__name__)

Key = tuple[str, str]
"""Name and version."""
NO_PROBLEM: Final = ModelProto.PROBLEM_UNSPECIFIED
NOT_TAKEN: Final = ModelProto.PROBLEM_NOT_TAKEN


@dataclass(frozen=True, slots=True)
class Entry:
    """What has become of a model's folder.

    model: what was loaded from it, also if it may not be used any more. problem: why it is not
    served.
    """

    place: Place
    model: Model | None = None
    problem: "ModelProto.Problem.ValueType" = NO_PROBLEM
    message: str = ""
    about: ModelProto = field(default_factory=ModelProto)

    @property
    def is_ready(self) -> bool:
        """Whether it is served."""
        return self.problem == NO_PROBLEM


class Registry:
    """The models of the folders. Thread-safe; a model stays usable for whoever has got it."""

    def __init__(self, settings: ModelSettings) -> None:
        """Nothing is loaded yet."""
        self._settings = settings
        self._bucket = _bucket(settings)
        # Replaced as a whole, never changed: readers take no lock.
        self._entries: Mapping[Key, Entry] = {}
        self._ignored: AbstractSet[Path] = frozenset()
        self._looking = threading.Lock()
        self._closing = threading.Event()
        self.changed = threading.Event()
        """Set when a state has changed; whoever tells of states clears it."""

    def open(self) -> None:
        """Loads every model.

        A bad one is UNAVAILABLE and stops no other. DeviceMissingError if a device is demanded that
        is not had, wholly or by one of them.
        """
        check_device(self._settings.device)
        try:
            if self._bucket is not None:
                self._bucket.open()
            self.look()
            self._check_fallback()
        except BaseException:
            self.close()
            raise

    def _check_fallback(self) -> None:
        for entry in self._entries.values():
            if entry.problem == ModelProto.PROBLEM_FELL_BACK_TO_CPU:
                name, version = entry.place.key
                raise DeviceMissingError(f"Model {name}/{version}: {entry.message}")

    def watch(self) -> None:
        """Goes on looking, in a thread of its own, until closed."""
        threading.Thread(target=self._watch, name="models", daemon=True).start()

    def close(self) -> None:
        """Looks no more."""
        self._closing.set()
        if self._bucket is not None:
            self._bucket.close()

    def find(self, name: str, version: str = "") -> Model:
        """The model of that name, in that version or the newest that is READY.

        FluoroError MODEL_UNKNOWN, with what there is, or MODEL_UNAVAILABLE, with the problem.
        """
        entries = self._entries
        ready = {key for key, entry in entries.items() if entry.is_ready}
        versions = [known for known_name, known in ready if known_name == name]
        wanted = version or newest(versions) or newest(v for n, v in entries if n == name)
        entry = entries.get((name, wanted or ""))
        if entry is None:
            there = ", ".join(sorted(f"{n} {v}" for n, v in ready)) or "none"
            raise FluoroError(
                Reason.MODEL_UNKNOWN,
                f"This worker has no such model, or not in this version; there are: {there}.",
            )
        if entry.model is None or not entry.is_ready:
            raise FluoroError(
                Reason.MODEL_UNAVAILABLE,
                f"{name} {wanted} is not served: {ModelProto.Problem.Name(entry.problem)}. "
                "GetModel has the details.",
            )
        return entry.model

    def told(self) -> Iterator[ModelProto]:
        """Each model as this process has it."""
        for entry in self._entries.values():
            yield entry.about

    def look(self) -> None:
        """Compares the folders with what is loaded, and loads what is new."""
        with self._looking:
            found = self._found()
            taken = self._taken(found)
            for key in self._entries.keys() - found.keys():
                self._put(key, None)
            for key, place in found.items():
                old = self._entries.get(key)
                if key not in taken:
                    self._put(key, _not_taken(place))
                elif old is None or old.place != place or old.problem == NOT_TAKEN:
                    self._put(key, self._loaded(place, old))

    def _found(self) -> dict[Key, Place]:
        """The places of all folders by name and version."""
        found: dict[Key, Place] = {}
        ignored: dict[Path, str] = {}
        for folder in self._settings.folders:
            try:
                there = places(folder)
            except OSError as error:
                # A share that is away for a moment takes no model away.
                log.warning("models_folder_unreadable", exception=type(error).__qualname__)
                there = [
                    entry.place
                    for entry in self._entries.values()
                    if entry.place.folder.is_relative_to(folder)
                ]
            for place in there:
                name, version = place.key
                if not re.match(NAME, name) or not re.match(VERSION, version):
                    ignored[place.folder] = "its path is not {name}/{version}, as in my-model/1.0.0"
                # The first folder wins: nobody replaces what ships by a file of the same version.
                elif found.setdefault(place.key, place) is not place:
                    ignored[place.folder] = "another folder has this version already"
        for path in ignored.keys() - self._ignored:
            log.warning("model_ignored", folder=str(path), why=ignored[path])
        self._ignored = ignored.keys()
        return found

    def _taken(self, found: Mapping[Key, Place]) -> set[Key]:
        """Those that are loaded: what is there already, then as many as fit."""
        known = {key for key, entry in self._entries.items() if entry.problem != NOT_TAKEN}
        return set(sorted(found, key=lambda key: key not in known)[:MAX_VERSIONS])

    def _loaded(self, place: Place, old: Entry | None) -> Entry:
        before = old if old is not None and old.model is not None else None
        try:
            files = read_model(place.folder)
            if before is not None:
                return self._again(place, before, files.manifest_sha256)
            model = open_model(files, self._settings)
        except ModelRefusedError as error:
            problem, message = error.problem, str(error)
        except Exception as error:  # what a file provokes in a library stops no other model
            log.exception("model_not_opened", folder=str(place.folder))
            problem = ModelProto.PROBLEM_RUN_FAILED
            message = f"Opening it failed in an unforeseen way ({type(error).__qualname__})."
        else:
            about = described(files)
            _set_state(about, NO_PROBLEM, "", model.execution_provider)
            return Entry(place, model, about=about)
        if before is not None:
            return self._again(place, before, b"")
        return _refused(place, problem, message)

    @staticmethod
    def _again(place: Place, old: Entry, manifest_sha256: bytes) -> Entry:
        """A version that was loaded before, whose files look different now.

        What runs is what was loaded, which is not what the folder says. Another worker, or this one
        after a restart, would run something else under the same name.
        """
        assert old.model is not None
        if manifest_sha256 == old.model.manifest_sha256:
            about = ModelProto()
            about.CopyFrom(old.about)
            _set_state(about, NO_PROBLEM, "", old.model.execution_provider)
            return Entry(place, old.model, about=about)
        message = (
            "The files of this version changed after they were loaded. Put the old ones back, and "
            "the change into a new version."
        )
        about = ModelProto()
        about.CopyFrom(old.about)
        _set_state(about, ModelProto.PROBLEM_FILES_CHANGED, message, "")
        return replace(
            old,
            place=place,
            problem=ModelProto.PROBLEM_FILES_CHANGED,
            message=message,
            about=about,
        )

    def _put(self, key: Key, entry: Entry | None) -> None:
        """Makes it the state of that version, and tells the log."""
        entries = dict(self._entries)
        old = entries.pop(key, None)
        if entry is not None:
            entries[key] = entry
        self._entries = entries
        if entry == old:
            return
        self.changed.set()
        name, version = key
        if entry is None:
            log.info("model_gone", model=name, version=version)
        elif entry.is_ready:
            log.info("model_ready", model=name, version=version)
        else:
            problem = ModelProto.Problem.Name(entry.problem)
            log.error(
                "model_unavailable",
                model=name,
                version=version,
                problem=problem,
                message=entry.message,
            )

    def _watch(self) -> None:
        while not self._closing.wait(self._settings.poll_seconds):
            try:
                self.look()
            except Exception:  # a thread that ended here would leave the models as they are
                log.exception("models_not_looked_at")


def _refused(place: Place, problem: "ModelProto.Problem.ValueType", message: str) -> Entry:
    name, version = place.key
    about = ModelProto(name=f"models/{name}/versions/{version}")
    _set_state(about, problem, message, "")
    return Entry(place, None, problem, message, about)


def _not_taken(place: Place) -> Entry:
    return _refused(
        place,
        NOT_TAKEN,
        f"A worker takes {MAX_VERSIONS} versions of models. Remove some.",
    )


def _set_state(
    about: ModelProto, problem: "ModelProto.Problem.ValueType", message: str, provider: str
) -> None:
    state = ModelProto.STATE_READY if problem == NO_PROBLEM else ModelProto.STATE_UNAVAILABLE
    about.state = state
    del about.deployments[:]
    about.deployments.add(
        state=state,
        problem=problem,
        message=message,
        execution_provider=provider,
        manifest_sha256=about.manifest_sha256,
        workers=1,
    )


def _bucket(settings: ModelSettings) -> Bucket | None:
    if settings.models_url is None or settings.models_cache is None:
        return None
    return Bucket(
        settings.models_url,
        settings.models_cache,
        settings.poll_seconds,
        settings.models_fetch_seconds,
    )


_OPENING: Final = threading.Lock()


@cache
def _opened() -> Registry:
    registry = Registry(ModelSettings())
    registry.open()
    registry.watch()
    return registry


def models() -> Registry:
    """The models of this process, by ModelSettings from the environment; opened on first use."""
    # `cache` alone would have two threads open the models at the same time.
    with _OPENING:
        return _opened()


def close() -> None:
    """Looks for models no more, so that the process can end."""
    with _OPENING:
        if _opened.cache_info().currsize:
            _opened().close()


def warm_up() -> Registry:
    """Opens the models of this process and runs the warm-up sample of each.

    Call it before readiness; DeviceMissingError means do not start.
    """
    return models()
