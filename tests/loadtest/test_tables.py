from loadtest import tables

COLUMNS: tables.Columns[tuple[str, float | None]] = {
    "name": lambda row: row[0],
    "share": lambda row: tables.percent(row[1]),
    "images/s": lambda row: tables.decimal(row[1]),
}


def test_figures_are_aligned_to_the_right_and_unknown_ones_are_dashes() -> None:
    assert tables.markdown(COLUMNS, [("a", 0.5), ("b", None)], texts=1) == (
        "| name | share | images/s |\n| --- | ---: | ---: |\n| a | 50% | 0.5 |\n| b | - | - |"
    )


def test_lines_of_a_terminal_are_below_their_titles() -> None:
    head, row = tables.line(COLUMNS, None), tables.line(COLUMNS, ("a", 0.5))
    assert (head, len(row)) == ("  name   share  images/s", len(head))
    assert row == "     a     50%       0.5"
