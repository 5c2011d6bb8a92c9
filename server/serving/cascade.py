"""Answers images with a cascade: the next member is asked if the one before was not sure, and there is time.

`Descent` decides what to do after each answer, without clock or engine; `descend` carries it out.
"""

import time
from collections.abc import Sequence

from models.confidence import is_sure
from server import tracing
from server.engine.admission import Admission
from server.engine.classes import NOTHING, Classes, Question, average
from server.engine.decoding import Image
from server.errors import Code, ServiceError
from server.metrics import Metrics
from server.repository import Model
from server.serving.classifier import Classifier
from server.serving.plan import AskedStage, Plan

TRY_EVERY = 16
"""One in this many images that seem to have no time left for the next member asks it all the same, since that may have
become faster. If it is too late, the answer so far is given."""
MOST_MODELS = 1000
"""Most models whose pace is remembered."""


class Pace:
    """Predicts how long later members of cascades take, from recent answers. It belongs to one event loop."""

    def __init__(self) -> None:
        self._learned: dict[str, Admission] = {}  # by model id; with one permit, this is TCP's prediction
        self._skipped = 0

    def learn(self, model: str, seconds: float) -> None:
        """Note how long a model took from question to answer."""
        if model not in self._learned and len(self._learned) >= MOST_MODELS:
            del self._learned[next(iter(self._learned))]
        self._learned.setdefault(model, Admission(1)).observe(1, seconds)

    def allows(self, models: Sequence[Model], within_s: float) -> bool:
        """Whether these models can probably answer, one after another, `within_s`."""
        known = (self._learned.get(model.id) for model in models)
        if within_s > 0 and sum(each.predict_s(1) for each in known if each) <= within_s:
            return True
        self._skipped += within_s > 0
        return within_s > 0 and self._skipped % TRY_EVERY == 0


class Descent:
    """Decides what to ask about one image, and whose answer to give. It asks no model twice."""

    def __init__(self, plan: Plan, pace: Pace, deadline_s: float) -> None:
        self._plan = plan
        self._pace = pace
        self._deadline_s = deadline_s
        self._stage = 0
        self._said: dict[str, list[Classes]] = {}  # by model id: its answers about every crop
        self._asked_s: float | None = None  # when the newest question was asked; None for the first
        self._queue_s = self._inference_s = self._decode_wait_s = self._decode_s = 0.0  # totals over all questions
        self._batch_size = 0
        self.question: Question | None = self._ask(plan.stages[0].models[0])
        """The question to ask now; None: `answer` is final."""
        self.answer: Classes | None = None
        """The newest member's answer."""
        self.passed_on: list[str] = []
        """Names of the members that were not sure, so that another was asked."""

    def told(self, answers: list[Classes], now_s: float) -> None:
        """Take the answers to the question, one for each crop, and decide what comes next."""
        asked = self._now_asked()
        if self._asked_s is not None:
            self._pace.learn(asked.id, now_s - self._asked_s)
        self._asked_s = now_s
        self._said[asked.id] = answers
        self._count(answers)
        self.question = None
        while self.question is None:
            stage = self._plan.stages[self._stage]
            if left := self._unasked(stage):
                self.question = self._ask(left[0])
            elif self._ends_with(stage, now_s):
                return

    def failed(self, error: ServiceError, now_s: float) -> bool:
        """Note that the question failed; returns whether to give the answer so far, as only time was lacking."""
        late = now_s >= self._deadline_s or error.code is Code.DEADLINE_EXCEEDED
        if self.answer is None or not (late or error.code is Code.OVERLOADED):
            return False
        if late and self._asked_s is not None:  # back off: assume twice as long, as TCP does (RFC 6298, 5.5)
            self._pace.learn(self._now_asked().id, 2 * (now_s - self._asked_s))
        self.passed_on.pop()
        self.answer = self.answer._replace(cut_short=True)
        return True

    def _now_asked(self) -> Model:
        if self.question is None:
            raise RuntimeError("nothing was asked")
        return self.question.model

    def _ask(self, model: Model) -> Question:
        """Ask for all classes if more than the best ones matter: for a mean, the entropy, or a client who wants all."""
        stages, top_k = self._plan.stages[self._stage :], self._plan.ask.top_k
        in_full = any(model in stage.models and self._is_mean(stage) for stage in stages)
        if in_full or top_k is None or (stages[0].rule and stages[0].rule.kind == "entropy"):
            return Question(model, None)
        return Question(model, max(top_k, 2))

    def _is_mean(self, stage: AskedStage) -> bool:
        return len(stage.models) * self._plan.ask.crops > 1

    def _unasked(self, stage: AskedStage) -> list[Model]:
        return [model for model in stage.models if model.id not in self._said]

    def _count(self, answers: list[Classes]) -> None:
        self._queue_s += max(answer.queue_s for answer in answers)
        self._inference_s += max(answer.inference_s for answer in answers)
        self._decode_wait_s += max(answer.decode_wait_s for answer in answers)
        self._decode_s += max(answer.decode_s for answer in answers)
        self._batch_size = max(self._batch_size, *(answer.batch_size for answer in answers))

    def _ends_with(self, stage: AskedStage, now_s: float) -> bool:
        """Compute the answer of a stage whose models have all answered; returns whether it is final."""
        activation = stage.models[0].manifest.activation
        said = [answer for model in stage.models for answer in self._said[model.id]]
        whole = said[0] if said[0].indices.size else average(said, None, activation)
        self.answer = whole._replace(
            probabilities=whole.probabilities[: self._plan.top_k],
            indices=whole.indices[: self._plan.top_k],
            logits=NOTHING,
            queue_s=self._queue_s,
            inference_s=self._inference_s,
            decode_wait_s=self._decode_wait_s,
            decode_s=self._decode_s,
            batch_size=self._batch_size,
            answered_by=stage.name,
        )
        if stage.rule is None or is_sure(stage.rule, whole.probabilities, activation):
            return True
        following = self._unasked(self._plan.stages[self._stage + 1])
        if not self._pace.allows(following, self._deadline_s - now_s):
            self.answer = self.answer._replace(cut_short=True)
            return True
        self._stage += 1
        self.passed_on.append(stage.name)
        return False


async def descend(
    plan: Plan, image: Image, deadline_s: float, classifier: Classifier, pace: Pace, metrics: Metrics
) -> Classes:
    """Ask a cascade's members about one image. It is decoded again only for members with other preprocessing.

    Raises:
        ServiceError: the first member failed, or a later one failed for another reason than lack of time.
    """
    descent = Descent(plan, pace, deadline_s)
    asked: Question

    def follow(answers: list[Classes]) -> Question | None:
        nonlocal asked
        tracing.note_stages(answers, asked.model.key)
        descent.told(answers, time.monotonic())
        before, question = asked, descent.question
        if question and question.model.manifest.preprocessing.reads_as(before.model.manifest.preprocessing):
            asked = question
            return question
        return None

    while question := descent.question:
        asked = question
        try:
            await classifier.classify(
                image,
                question.model,
                question.top_k,
                deadline_s,
                crops=plan.ask.crops,
                priority=plan.priority,
                follow=follow,
            )
        except ServiceError as error:
            if not descent.failed(error, time.monotonic()):
                raise
            break
    if descent.answer is None:
        raise RuntimeError("a cascade ended without an answer")
    metrics.count_cascade(plan.labels, descent.passed_on, descent.answer.answered_by, cut=descent.answer.cut_short)
    return descent.answer
