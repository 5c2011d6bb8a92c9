"""Messages to engines and HTTP workers while the models change: a state machine without any I/O, above `Rollout`.

The engines load what is missing. The HTTP workers get one catalogue of the served models, and which engine has which;
each such message has a number, its generation. Once all workers report that none of their requests needs an older
generation, the engines unload the rest. A client that asked for a model is answered once every worker serves the
outcome, so it sees that outcome whichever worker it connects to.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, assert_never

from server.control import Change, Changed, Demand, Hold, Load, Serve, Unload
from server.errors import Code, ServiceError
from server.fitting import Budget, Measured
from server.on_demand import OnDemand
from server.refusals import Refusal
from server.repository import Catalogue, Model, ModelKey
from server.rollout import Progress, Rollout

NOTHING: Mapping[str, Measured] = MappingProxyType({})


class TellEngine(NamedTuple):
    """Send this to an engine."""

    engine: int
    message: Load | Unload


class TellWorkers(NamedTuple):
    """Send this to every HTTP worker."""

    message: Serve | Hold


class TellWorker(NamedTuple):
    """Send this to one HTTP worker."""

    worker: str
    message: Changed


Step = TellEngine | TellWorkers | TellWorker


@dataclass(slots=True)
class _Worker:
    """The generations that an HTTP worker has reached."""

    serving: int
    drained: int
    """Newest generation that the worker has fully drained to: it needs no older one."""


class ModelControl:
    """Turns the repository's contents and the clients' requests into messages to engines and HTTP workers."""

    def __init__(
        self,
        catalogue: Catalogue,
        default_model: str | None = None,
        engines: int = 1,
        *,
        budget: Budget | None = None,
        first: Sequence[str] = (),
        patience_s: float = 60.0,
    ) -> None:
        """Start from the first scan; `default_model` is the one that the operator set.

        Without a budget, all models are loaded; with one, see `OnDemand`.
        """
        self._rollout = (
            OnDemand(catalogue, default_model, engines, budget, first, patience_s)
            if budget
            else Rollout(catalogue, default_model, engines, patience_s)
        )
        self._engines = range(engines)
        self._held = list(self._rollout.held)  # what the HTTP workers were last told each engine has
        self._workers: dict[str, _Worker] = {}
        self._asked_for: dict[str, None] = {}
        self._changes: list[tuple[str, Change]] = []  # under way, each with the worker to answer
        self._answers: list[TellWorker] = []
        self.serve = Serve(catalogue, 0, self._rollout.held, self._rollout.usable)
        """The newest `Serve` sent to the HTTP workers."""

    @property
    def served(self) -> Catalogue:
        """The models that requests may name."""
        return self._rollout.served

    @property
    def states(self) -> Mapping[str, int]:
        """How many models are loaded, loading, unloaded."""
        return self._rollout.states

    def key_of(self, model_id: str) -> ModelKey | None:
        """The key by which requests name a model; None if they may not."""
        return next((key for key, model in self.served.models.items() if model.id == model_id), None)

    @property
    def asked_for(self) -> list[str]:
        """Names of models that were loaded on request."""
        return list(self._asked_for)

    def worker_started(self, worker: str) -> None:
        """Note that a worker was started with `serve`."""
        self._workers[worker] = _Worker(self.serve.generation, self.serve.generation)

    def worker_ended(self, worker: str) -> None:
        """Stop waiting for this worker, and drop the answers meant for it."""
        self._workers.pop(worker, None)
        self._rollout.worker_ended(worker)
        self._changes = [(asking, change) for asking, change in self._changes if asking != worker]
        self._answers = [answer for answer in self._answers if answer.worker != worker]

    def serving(self, worker: str, generation: int) -> None:
        """Note that this worker now serves new requests from this generation."""
        self._workers[worker].serving = generation

    def drained(self, worker: str, generation: int) -> None:
        """Note that no request of this worker needs an older generation."""
        known = self._workers[worker]
        known.drained = max(known.drained, generation)

    def demanded(self, worker: str, demand: Demand) -> None:
        """Note which models this worker's requests wait for, and which they have used."""
        self._rollout.demanded(worker, *demand)

    def start_engine(self, engine: int) -> list[Model]:
        """The models that a new engine loads before it is ready."""
        return self._rollout.start_engine(engine)

    def engine_ready(
        self, engine: int, refused: Mapping[str, Refusal], now_s: float, measured: Mapping[str, Measured] = NOTHING
    ) -> None:
        """Note that an engine has the models it was started with, except those refused, by id; tell the workers."""
        self._rollout.engine_ready(engine, refused, now_s)
        self._rollout.measured(engine, measured)
        self._held[engine] = self._rollout.held[engine]

    def held(self, engine: int) -> frozenset[str]:
        """Ids of the models that an engine has."""
        return self._rollout.held[engine]

    def engine_ended(self, engine: int, now_s: float) -> None:
        """Note that an engine died; its successor gets the served models."""
        self._rollout.engine_lost(engine, now_s)

    def loaded(
        self, engine: int, model_id: str, refusal: Refusal | None, now_s: float, measured: Measured | None = None
    ) -> None:
        """Note that an engine has loaded a model, or refused it."""
        self._rollout.loaded(engine, model_id, refusal, now_s)
        if measured:
            self._rollout.measured(engine, {model_id: measured})

    def retry(self, now_s: float) -> bool:
        """Whether a model refused for now is due for another attempt, or a load that hangs is given up."""
        return self._rollout.retry(now_s)

    def scanned(self, catalogue: Catalogue, changed: Set[ModelKey] = frozenset()) -> None:
        """Take over a new scan of the repository, in which the files of the versions `changed` are different."""
        self._rollout.scanned(catalogue, changed)

    def asked(self, worker: str, change: Change) -> None:
        """Load a model as the newest scan found it, or unload it, for an HTTP worker, which will get one answer."""
        try:
            if change.action == "load":
                self._rollout.load(change.name)
                self._asked_for[change.name] = None
            else:
                self._rollout.unload(change.name)
        except ServiceError as error:
            self.refuse(worker, change, error)
        else:
            self._changes.append((worker, change))

    def refuse(self, worker: str, change: Change, error: ServiceError) -> None:
        """Answer an HTTP worker that its change cannot be made."""
        self._answers.append(TellWorker(worker, Changed(change.id, error)))

    def steps(self) -> list[Step]:
        """Messages to send now, in this order; each is returned once."""
        steps: list[Step] = [*self._answers]
        self._answers.clear()
        up = [engine for engine in self._engines if self._rollout.is_up(engine)]
        steps += self._take_loads(up)
        rollout = self._rollout
        changed, moved = rollout.served != self.serve.catalogue, self._has_moved()
        if changed or moved:
            self._held = list(rollout.held)
            where = rollout.held, rollout.usable, rollout.loading
            self.serve = Serve(rollout.served, self.serve.generation + 1, *where)
            steps.append(TellWorkers(self.serve if changed else Hold(self.serve.generation, *where)))
        workers = self._workers.values()
        if all(worker.drained >= self.serve.generation for worker in workers):
            gone = [TellEngine(engine, Unload(its)) for engine in up for its in rollout.take_surplus(engine)]
            steps += [*gone, *(self._take_loads(up) if gone else [])]  # there is room for them now
        if all(worker.serving >= self.serve.generation for worker in workers):
            steps += self._take_outcomes()
        return steps

    def _take_loads(self, engines: Sequence[int]) -> list[TellEngine]:
        return [TellEngine(engine, Load(model)) for engine in engines for model in self._rollout.take_missing(engine)]

    def _has_moved(self) -> bool:
        """Whether other models are usable now, or an engine has a served model that the HTTP workers do not know of."""
        rollout = self._rollout
        if rollout.usable != self.serve.usable or rollout.loading.keys() != self.serve.loading.keys():
            return True
        served = {model.id for model in self._rollout.served.models.values()}
        return any(served & has - told for has, told in zip(self._rollout.held, self._held, strict=True))

    def _take_outcomes(self) -> list[TellWorker]:
        """Answers to the changes that are done."""
        answers, waiting = [], []
        for worker, change in self._changes:
            match self._rollout.outcome(change.name) if change.action == "load" else Progress.SERVED:
                case Progress.LOADING:
                    waiting.append((worker, change))
                case Progress.SERVED:
                    answers.append(TellWorker(worker, Changed(change.id, None)))
                case Refusal() as refusal:
                    code = Code.MODEL_UNAVAILABLE if refusal.is_tried_again else Code.MODEL_REFUSED
                    answers.append(TellWorker(worker, Changed(change.id, ServiceError(code, refusal.reason))))
                case unknown:
                    assert_never(unknown)
        self._changes = waiting
        return answers
