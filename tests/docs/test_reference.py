"""The generated blocks of the pages, and the reference of the public names."""

import re

import pytest
import reference

import mailglass_reconcile
from mailglass_reconcile import webhooks

pytestmark = pytest.mark.version_independent


def test_every_public_name_is_in_the_reference():
    """The package's names and the receivers' are included; the version is no entry."""
    words = " ".join(reference.NAMES.values()).split()
    public = {*mailglass_reconcile.__all__, *(f"webhooks.{name}" for name in webhooks.__all__), "tables"} - {
        "__version__"
    }
    assert public == {
        name
        for name in words
        if not name.startswith(("contrib.", "handlers.", "pubsub.", "sweep.", "rules.", "tasks."))
    }


def test_the_reference_shows_nothing_internal():
    """It has no attribute that only this package uses, and no type without an explanation."""
    text = reference.api()
    assert "`step`" not in text
    for name in ("SecretsArgument", "Receiver", "Rule", "BeatEntry", "When", "sa", "Callable"):
        assert not re.search(rf"^```text\n[^`]*\b{name}\b", text, re.M), name


def test_each_generated_block_is_what_the_code_says():
    """Docstrings, signatures, options, records and privileges agree with the pages and files."""
    reference.main(["--check"])


def test_a_generated_block_that_was_changed_by_hand_is_named_with_the_command(monkeypatch):
    """`--check` ends with this line."""
    monkeypatch.setattr(reference, "links", lambda: "other\n")
    with pytest.raises(SystemExit, match=r"^run `python docs/reference\.py`, which changes providers\.md$"):
        reference.main(["--check"])


def test_pages_install_from_the_index_once_the_package_is_there():
    """Until then they and the messages install from the clone; `git clone` gets the project's address."""
    page = "$ git clone https://git.example.com/x\n$ pip install .\n`pip install '../..[web,django]' fastapi`"
    page += ' `pip install "PATH_OF_THE_CLONE[django]"` `pip install asyncpg` `pip install ./other` --editable .'
    assert reference.with_owners_markers(page, "", on_pypi=False) == page
    assert reference.with_owners_markers(page, "https://example.com/y", on_pypi=True) == (
        "$ git clone https://example.com/y\n$ pip install mailglass-reconcile\n"
        "`pip install 'mailglass-reconcile[web,django]' fastapi` `pip install \"mailglass-reconcile[django]\"`"
        " `pip install asyncpg` `pip install ./other` --editable ."
    )
