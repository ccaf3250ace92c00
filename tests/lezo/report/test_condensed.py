"""What all rows of a table share is said once, and what is empty is left out."""

from collections.abc import Mapping

from lezo.report.cells import NOTHING, Cell, Table, setting
from lezo.report.condensed import condensed


def table(*settings: Mapping[str, str], published: str = "-", runs: str = "3") -> Table:
    rows = [
        [
            Cell("rte"),
            Cell("lezo"),
            Cell("50.0", 50.0),
            setting(one),
            Cell("3", 3),
            Cell(runs, 3),
            Cell(published),
        ]
        for one in settings
    ]
    columns = ("task", "method", "test %", "setting", "seeds", "runs", "published %")
    return Table("results", "Results", columns, rows)


def test_shared_settings_stand_above_and_empty_columns_are_gone() -> None:
    shown = condensed(table({"lr": "0.1", "eps": "0.001"}, {"lr": "0.2", "eps": "0.001"}))
    assert shown.columns == ["method", "test %", "setting", "seeds"]
    assert [row[2].text for row in shown.rows] == ["lr 0.1", "lr 0.2"]
    assert shown.above == "All rows: task rte, eps 0.001."


def test_what_some_methods_do_not_have_is_shared_by_those_that_do() -> None:
    shown = condensed(table({"lr": "0.1"}, {"lr": "0.2", "eps": "0.001"}, {"lr": "0.3", "eps": "0.001"}))
    assert shown.above == "All rows: task rte; eps 0.001 where a method has it."


def test_what_sets_one_row_apart_stays_in_it() -> None:
    """Of demonstrations there are none where nothing is said: that is another value."""
    shown = condensed(table({"lr": "0.1"}, {"lr": "0.1", "task.demos": "4"}))
    assert [row[2].text for row in shown.rows] == ["-", "task.demos 4"]
    assert shown.above == "All rows: task rte, lr 0.1."


def test_columns_that_say_something_stay() -> None:
    shown = condensed(table({"lr": "0.1"}, {"lr": "0.1"}, published="66.1", runs="4"))
    assert shown.columns == ["method", "test %", "seeds", "runs", "published %"]
    assert shown.rows[0][1] == Cell("50.0", 50.0)


def test_a_setting_that_has_a_column_is_not_said_beside_it() -> None:
    rows = [[Cell("0.75", 0.75), setting({"sparsity": "0.75"})], [Cell("0", 0.0), setting({})]]
    shown = condensed(Table("sparsity", "S", ("sparsity", "setting"), rows))
    assert (shown.columns, shown.above) == (["sparsity"], "")


def test_a_table_without_settings_stays_as_it_is() -> None:
    shown = condensed(Table("t", "T", ("folder", "what"), [[Cell("a"), Cell("b")], [Cell("c"), NOTHING]]))
    assert (shown.columns, shown.above) == (["folder", "what"], "")
