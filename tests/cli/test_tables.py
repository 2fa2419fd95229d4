"""Every table of the command line: what is in it is text, and a file loses none of it."""

import io

import pytest
from rich.console import Console

from clusterucb.cli.tables import print_table


def shown(*arguments, width=80, terminal=False, **options):
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)
    print_table(console, *arguments, **options)
    return console.file.getvalue()


@pytest.mark.parametrize("name", ["[red]", "[/]", "[link=x]y[/link]"])
def test_brackets_are_shown_as_they_are_wherever_they_stand(name):
    assert shown(f"of {name}", ["first", f"in {name}"], [[name, name]]).count(name) == 4


def test_a_file_folds_nothing_and_a_terminal_folds_words_first():
    row = ["word " * 15, "12.3 ± 4.6"]
    assert "word " * 15 in shown("", ["what", "number"], [row], width=40)
    folded = shown("", ["what", "number"], [row], width=40, terminal=True, whole=True)
    assert folded.count("word") == 15
    assert folded.count("12.3 ± 4.6") == 1
    assert max(map(len, folded.splitlines())) <= 40
