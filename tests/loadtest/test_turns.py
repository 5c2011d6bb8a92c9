from loadtest.turns import in_turns


def test_each_has_its_turn_in_every_round_and_none_is_always_first() -> None:
    assert list(in_turns("abc", 2)) == [(0, "a"), (0, "b"), (0, "c"), (1, "c"), (1, "b"), (1, "a")]
