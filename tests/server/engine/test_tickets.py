"""The life of requests, event by event, with numbers as time and slots, and nothing real around it."""

from collections.abc import Sequence

import numpy as np
import pytest

from server.engine.decoding import Decoded
from server.engine.dispatch import Engines
from server.engine.messages import Answer, Cancel, Dropped, Failure, Submit
from server.engine.scheduler import Priority
from server.engine.tickets import MAX_CRASHES, Answered, Ended, State, Ticket, Tickets
from server.errors import Code, ServiceError

DEADLINE_S = 100.0
MODELS = frozenset({"model", "other"})


def one_engine() -> Engines:
    return Engines(np.zeros((1, 1)), 0)


def admit(tickets: Tickets, crops: int = 1, *, deadline_s: float = DEADLINE_S, now_s: float = 0.0) -> list[Ticket]:
    return tickets.admit(crops, "model", 5, deadline_s, Priority.NORMAL, now_s)


def decode(tickets: Tickets, admitted: Sequence[Ticket], now_s: float = 2.0) -> list[Submit]:
    actions = tickets.decoded(admitted, Decoded(1.0, now_s), now_s)
    assert all(isinstance(action, Submit) for action in actions)
    return [action for action in actions if isinstance(action, Submit)]


def connected(slots: int = 2, engines: Engines | None = None) -> Tickets:
    tickets = Tickets(range(10, 10 + slots), engines or one_engine())
    assert tickets.engine_up(0, MODELS, 0.0) == []
    return tickets


def answer(ticket: Ticket) -> Answer:
    return Answer(ticket.id, b"", b"", b"", 0.25, 0.5, 3)


def code_of(ended: object) -> Code:
    assert isinstance(ended, Ended)
    assert isinstance(ended.outcome, ServiceError)
    return ended.outcome.code


def test_a_decoded_crop_is_submitted_with_what_its_decoding_took() -> None:
    tickets = connected()
    (ticket,) = admit(tickets, now_s=0.5)
    (submit,) = decode(tickets, [ticket])
    assert (submit.id, submit.slot, submit.arrived_s, submit.deadline_s) == (ticket.id, ticket.slot, 2.0, DEADLINE_S)
    assert (ticket.decode_wait_s, ticket.decode_s) == (0.5, 1.0)
    assert tickets.replied(answer(ticket), 3.0) == Ended(ticket, answer(ticket))
    assert len(tickets) == 0


def test_an_image_has_all_its_permits_or_none() -> None:
    tickets = connected(slots=3)
    first = admit(tickets)
    with pytest.raises(ServiceError) as error:
        admit(tickets, crops=3)
    assert (error.value.code, len(tickets)) == (Code.QUEUE_FULL, 1)
    decode(tickets, first)
    tickets.replied(answer(first[0]), 3.0)
    assert len({ticket.slot for ticket in admit(tickets, crops=3)}) == 3


def test_what_could_never_be_admitted_is_no_matter_of_waiting() -> None:
    with pytest.raises(ServiceError) as error:
        admit(connected(slots=3), crops=4)
    assert error.value.code is Code.INVALID_PARAMETER


@pytest.mark.parametrize("result", [None, ServiceError(Code.NOT_AN_IMAGE, "text")])
def test_what_is_not_decoded_ends_without_the_engine(result: ServiceError | None) -> None:
    tickets = connected()
    admitted = admit(tickets, crops=2)
    assert tickets.decoded(admitted, result, 1.0) == [Ended(ticket, result) for ticket in admitted]
    assert len(tickets) == 0


def test_what_is_decoded_too_late_never_reaches_the_engine() -> None:
    tickets = connected()
    (ticket,) = admit(tickets, deadline_s=2.0)
    assert tickets.decoded([ticket], Decoded(1.0, 2.0), 2.0) == [Ended(ticket, None)]


def test_who_leaves_while_decoding_keeps_the_slot_until_the_decoder_lets_go_of_it() -> None:
    tickets = connected()
    (ticket,) = admit(tickets)
    assert tickets.give_up(ticket) == []
    assert len(tickets) == 1
    assert tickets.decoded([ticket], Decoded(1.0, 2.0), 2.0) == [Ended(ticket, None)]


def test_who_leaves_while_the_engine_has_the_slot_keeps_it_until_the_engine_says_so() -> None:
    tickets = connected()
    (ticket,) = admit(tickets)
    decode(tickets, [ticket])
    assert tickets.give_up(ticket) == [Cancel(ticket.id)]
    assert len(tickets) == 1
    assert tickets.replied(Dropped(ticket.id), 3.0) == Ended(ticket, None)
    assert tickets.give_up(ticket) == []


def test_what_waits_for_an_engine_is_submitted_to_the_next_in_order() -> None:
    tickets = Tickets(range(3), one_engine())
    admitted = admit(tickets, crops=3)
    assert tickets.decoded(admitted, Decoded(1.0, 2.0), 2.0) == []
    assert {ticket.state for ticket in admitted} == {State.WAITING}
    assert tickets.too_late(admitted).code is Code.ENGINE_UNAVAILABLE
    assert tickets.give_up(admitted[1]) == [Ended(admitted[1], None)]
    again = tickets.engine_up(0, MODELS, 3.0)
    assert [action.id for action in again if isinstance(action, Submit)] == [admitted[0].id, admitted[2].id]
    assert tickets.too_late(admitted).code is Code.ENGINE_UNAVAILABLE  # one of them waited in vain
    assert tickets.too_late([admitted[0]]).code is Code.DEADLINE_EXCEEDED


def test_what_an_engine_died_of_goes_into_quarantine_and_then_is_given_up() -> None:
    tickets = connected()
    guilty, innocent = admit(tickets, crops=2)
    decode(tickets, [guilty, innocent])
    for crash in range(1, MAX_CRASHES + 1):
        ended = tickets.engine_down(0, {guilty.slot}, recovering=True, now_s=3.0)
        assert len(ended) == (crash == MAX_CRASHES)
        again = {
            action.id: action.quarantined for action in tickets.engine_up(0, MODELS, 4.0) if isinstance(action, Submit)
        }
        assert again == {innocent.id: False, **({} if ended else {guilty.id: True})}
    assert code_of(ended[0]) is Code.ENGINE_CRASHED


def test_where_one_crash_is_enough_it_runs_alone_and_is_not_tried_again() -> None:
    tickets = Tickets([10], one_engine(), most_crashes=1)
    tickets.engine_up(0, MODELS, 0.0)
    (ticket,) = admit(tickets)
    (submit,) = decode(tickets, [ticket])
    assert submit.quarantined
    (ended,) = tickets.engine_down(0, {10}, recovering=True, now_s=3.0)
    assert code_of(ended) == Code.ENGINE_CRASHED
    (ticket,) = admit(tickets)
    decoded = tickets.decoded([ticket], Decoded(1.0, 4.0), 4.0)
    assert (decoded, ticket.state) == ([], State.WAITING)  # for the next engine, like a ticket that no engine has run


def test_an_engine_that_is_not_to_come_back_soon_ends_all_that_waits_and_refuses_the_rest() -> None:
    tickets = connected(slots=3, engines=(engines := one_engine()))
    first, second = admit(tickets, crops=2)
    (decoding,) = admit(tickets)
    decode(tickets, [first, second])
    tickets.give_up(second)
    ended = tickets.engine_down(0, frozenset(), recovering=False, now_s=3.0)
    assert ended[0] == Ended(second, None)
    assert code_of(ended[1]) is Code.ENGINE_UNAVAILABLE
    with pytest.raises(ServiceError) as error:
        tickets.check(1, 10.0)
    assert error.value.code is Code.ENGINE_UNAVAILABLE
    (last,) = tickets.decoded([decoding], Decoded(1.0, 4.0), 4.0)
    assert code_of(last) is Code.ENGINE_UNAVAILABLE
    assert not engines.any_up
    tickets.engine_up(0, MODELS, 5.0)
    tickets.check(1, 10.0)
    assert len(tickets) == 0


def test_an_engines_failure_is_the_tickets() -> None:
    tickets = connected()
    (ticket,) = admit(tickets)
    decode(tickets, [ticket])
    assert (
        code_of(tickets.replied(Failure(ticket.id, Code.INFERENCE_FAILED, "no memory"), 3.0)) is Code.INFERENCE_FAILED
    )


def test_only_the_pace_of_an_engine_that_was_there_all_the_time_is_learned() -> None:
    tickets = connected(slots=3)
    (waited,) = admit(tickets, now_s=1.0)
    decode(tickets, [waited])
    tickets.engine_down(0, frozenset(), recovering=True, now_s=3.0)
    tickets.engine_up(0, MODELS, 50.0)
    tickets.replied(answer(waited), 51.0)
    admit(tickets, now_s=51.0)
    tickets.check(1, 0.1)  # its pace is unknown
    (quick,) = admit(tickets, now_s=51.0)
    decode(tickets, [quick], 51.5)
    tickets.replied(answer(quick), 52.0)
    with pytest.raises(ServiceError) as error:
        tickets.check(1, 0.1)
    assert error.value.code is Code.OVERLOADED


def kept(tickets: Tickets, crops: int = 1, *, now_s: float = 0.5) -> list[Ticket]:
    """Tickets that have their answer but keep their pixels."""
    admitted = admit(tickets, crops, now_s=now_s)
    for ticket in admitted:
        ticket.kept = True
    decode(tickets, admitted)
    for ticket in admitted:
        assert tickets.replied(answer(ticket), 3.0) == Answered(ticket, answer(ticket))
    return admitted


def test_what_is_kept_can_be_asked_again_in_the_same_slot_without_decoding() -> None:
    tickets = connected(slots=1)
    (ticket,) = kept(tickets)
    assert (len(tickets), ticket.state) == (1, State.ANSWERED)
    (submit,) = tickets.ask_again([ticket], "other", None, 3.5)
    assert isinstance(submit, Submit)
    assert (submit.model, submit.top_k, submit.slot, submit.arrived_s) == ("other", None, ticket.slot, 3.5)
    assert (ticket.decode_wait_s, ticket.decode_s) == (0, 0)
    assert tickets.replied(answer(ticket), 4.0) == Answered(ticket, answer(ticket))
    assert tickets.give_up(ticket) == [Ended(ticket, None)]
    assert len(admit(tickets)) == 1


def test_the_whole_time_of_what_was_asked_twice_is_learned_once() -> None:
    tickets = connected()
    (ticket,) = kept(tickets, now_s=1.0)
    tickets.ask_again([ticket], "other", None, 3.0)
    tickets.replied(answer(ticket), 5.0)
    tickets.give_up(ticket)
    (under_way,) = admit(tickets, now_s=6.0)
    with pytest.raises(ServiceError) as error:  # an image takes 4 s
        tickets.check(1, 3.9)
    assert error.value.code is Code.OVERLOADED
    tickets.check(1, 8.1)
    tickets.decoded([under_way], None, 6.0)


def test_who_leaves_between_two_questions_frees_the_slot_at_once_and_while_asked_again_as_ever() -> None:
    tickets = connected()
    left, leaving = kept(tickets, crops=2)
    assert tickets.give_up(left) == [Ended(left, None)]
    tickets.ask_again([leaving], "other", 5, 3.0)
    assert tickets.give_up(leaving) == [Cancel(leaving.id)]
    assert tickets.replied(Dropped(leaving.id), 4.0) == Ended(leaving, None)


def test_who_left_before_the_answer_came_keeps_nothing() -> None:
    tickets = connected()
    (ticket,) = admit(tickets)
    ticket.kept = True
    decode(tickets, [ticket])
    tickets.give_up(ticket)
    assert tickets.replied(answer(ticket), 3.0) == Ended(ticket, answer(ticket))


def test_an_engine_that_dies_between_or_during_the_questions_loses_nothing() -> None:
    tickets = connected(slots=3)
    between, during, innocent = kept(tickets, crops=3)
    tickets.ask_again([during, innocent], "other", 5, 3.0)
    assert tickets.engine_down(0, {during.slot}, recovering=True, now_s=4.0) == []
    assert tickets.ask_again([between], "other", 5, 5.0) == []
    again = {submit.id: submit for submit in tickets.engine_up(0, MODELS, 6.0) if isinstance(submit, Submit)}
    assert {submit.model for submit in again.values()} == {"other"}
    assert [again[ticket.id].quarantined for ticket in (between, during, innocent)] == [False, True, False]
    assert code_of(*tickets.engine_down(0, {during.slot}, recovering=True, now_s=7.0)) is Code.ENGINE_CRASHED


def test_what_fails_when_it_is_asked_again_has_ended() -> None:
    tickets = connected(slots=2)
    failing, away = kept(tickets, crops=2)
    tickets.ask_again([failing], "other", 5, 3.0)
    failure = Failure(failing.id, Code.INFERENCE_FAILED, "no memory")
    assert code_of(tickets.replied(failure, 3.0)) is Code.INFERENCE_FAILED
    tickets.engine_down(0, set(), recovering=False, now_s=4.0)
    assert code_of(*tickets.ask_again([away], "other", 5, 5.0)) is Code.ENGINE_UNAVAILABLE
    assert len(tickets) == 0


def two_engines(slots: int = 4) -> Tickets:
    tickets = Tickets(range(10, 10 + slots), Engines(np.zeros((1, 2)), 0))
    for engine in range(2):
        assert tickets.engine_up(engine, MODELS, 0.0) == []
    return tickets


def test_what_an_engine_had_goes_to_the_others_at_once_and_what_it_ran_alone() -> None:
    tickets = two_engines()
    admitted = admit(tickets, crops=4)
    decode(tickets, admitted)
    assert [ticket.engine for ticket in admitted] == [0, 1, 0, 1]
    assert tickets.slots_at(0) == [admitted[0].slot, admitted[2].slot]
    again = tickets.engine_down(0, {admitted[0].slot}, recovering=True, now_s=3.0)
    assert [(action.id, action.quarantined) for action in again if isinstance(action, Submit)] == [
        (admitted[0].id, True),
        (admitted[2].id, False),
    ]
    assert {tickets.engine_of(ticket.id) for ticket in admitted} == {1}
    assert tickets.engine_up(0, MODELS, 4.0) == []


def test_crashes_count_over_all_engines() -> None:
    tickets = two_engines()
    (guilty,) = admit(tickets)
    decode(tickets, [guilty])
    (again,) = tickets.engine_down(0, {guilty.slot}, recovering=True, now_s=3.0)
    assert isinstance(again, Submit)
    (ended,) = tickets.engine_down(1, {guilty.slot}, recovering=True, now_s=4.0)
    assert code_of(ended) is Code.ENGINE_CRASHED


def test_what_only_an_engine_that_is_away_has_waits_for_that_one() -> None:
    tickets = two_engines()
    tickets.engine_down(1, set(), recovering=True, now_s=1.0)
    tickets.engine_up(0, frozenset({"other"}), 1.0)
    (ticket,) = admit(tickets, now_s=1.5)
    assert tickets.decoded([ticket], Decoded(1.6, 2.0), 2.0) == []
    assert tickets.engine_up(0, frozenset({"other"}), 3.0) == []
    (submit,) = tickets.engine_up(1, MODELS, 4.0)
    assert isinstance(submit, Submit)
    assert tickets.engine_of(ticket.id) == 1
    (ended,) = tickets.engine_down(1, set(), recovering=False, now_s=5.0)
    assert code_of(ended) is Code.ENGINE_UNAVAILABLE
    with pytest.raises(ServiceError) as error:
        admit(tickets, now_s=6.0)
    assert error.value.code is Code.ENGINE_UNAVAILABLE
    tickets.check(1, 10.0)  # other models have an engine
