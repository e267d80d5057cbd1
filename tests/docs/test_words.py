"""The pages call a thing by one word, that of the glossary in docs/concepts.md."""

import re

import pytest

import pages

pytestmark = pytest.mark.version_independent

SYNONYMS = {
    "update the delivery": r"projections?|projectors?|projected|projects? (?:it |them |an event )?onto",
    "definition": r"provider(?:'s)? records?|records? of (?:a|the|each) provider",
    "open event": r"pending events?|unlinked events?|parked events?|waiting orphans?",
    "link": r"re-?attach\w*|pair up",
    "handler": r"callbacks?|(?<!web )hooks?|listeners?",
    "prune": r"purges?|purged|vacuum our",
    "state": r"verdicts?|judge[sd]?",
    "counts": r"tall(?:y|ies)|census",
    "privilege": r"(?:access|database) rights?",
    "repeat": r"(?-i:resends?|re-sends?|resent)",
    "grace period": r"grace time|quarantine period",
    "maximum age": r"max age|time to live",
}
"""What a page must not say in prose, by the word that it says instead; `Resend` is a provider."""


TEXTS = [*pages.PAGES, *sorted((pages.ROOT / "examples").rglob("README.md"))]


def prose(page):
    """Return a page's text without code, generated comments and targets of links."""
    text = re.sub(r"<!--.*?-->", "", pages.BLOCK.sub("", page.read_text()), flags=re.S)
    return re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "", text))


@pytest.mark.parametrize("word", SYNONYMS)
def test_pages_use_the_word_of_the_glossary(word):
    """A second word for one thing makes a reader search for a difference."""
    pattern = re.compile(rf"\b(?:{SYNONYMS[word]})\b", re.IGNORECASE)
    used = [f"{page.name}: {match[0]}" for page in TEXTS for match in pattern.finditer(prose(page))]
    assert used == []


def test_there_is_one_glossary_and_it_has_each_word_of_the_states_and_sweeps():
    """Other pages link to it."""
    titles = re.compile(r"^#+ (?:The words|Glossary|Terms|Vocabulary)$", re.MULTILINE)
    assert [page.name for page in pages.PAGES if titles.search(page.read_text())] == ["concepts.md"]
    glossary = (pages.ROOT / "docs/concepts.md").read_text().partition("## The words")[2].partition("\n## ")[0]
    explained = set(re.findall(r"\*\*([\w ]+)\*\*", glossary))
    words = (
        "delivery event ledger orphan link sweep state arrival eligible expired tenant broadcast handler job dispatch"
    )
    assert {*words.split(" "), "prune", "open event", "grace period", "key rule"} <= explained
