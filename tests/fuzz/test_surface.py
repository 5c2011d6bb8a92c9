from tests.fuzz import surface


def test_no_bytes_on_a_socket_break_or_grow_the_server() -> None:
    outcomes, faults = surface.run(3000)
    assert not faults, "\n".join(faults)
    assert {"200", "400", "404", "415", "422", "closed"} <= outcomes.keys()
