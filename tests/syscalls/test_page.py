"""The documentation's page is the table's."""

from . import page


def test_the_page_has_what_the_table_says() -> None:
    assert page.BEGIN + page.render() + page.END in page.PAGE.read_text(), (
        "python -m tests.syscalls --write"
    )
