"""Words that we no longer use, wherever a person reads: pages, docstrings, help, errors, log lines, comments."""

import re
from functools import cache
from pathlib import Path

import pytest

import wording

ROOT = Path(__file__).parents[2]
READ = ("*.md", "docs/**/*.md", "docs/*.py", "*.py", "alembic/**/*.py", "bench/**/*.py")
READ += ("examples/**/*.py", "examples/**/*.md", "mailglass_reconcile/**/*.py", "mailglass_reconcile/**/*.html")
FILES = sorted({path for pattern in READ for path in ROOT.glob(pattern) if not path.is_relative_to(ROOT / ".venv")})

NOT_SO = {
    r"\banew\b": "again",
    r"\b(?:is|are|was|were|be|been) told of\b|\btells? of\b": "announced; a handler is called for an event",
    r"\bhear[sd]? of\b|\bheard of\b": "hear about; a handler is called for an event",
    r"\b(?:comes|came|come) to (?:it|this|that|them)\b": "reach, result in",
    r"\bcomes along\b|\bcome along\b": "bundled",
    r"\bsees? to (?:it|that)\b": "make sure",
    r"\bmend(?:s|ed|ing)?\b": "repair",
    r"\b(?:heals|healed|healing|to heal)\b": "fix",
    r"\bbut for\b|\bsave for\b": "except",
    r"\bfor ever\b": "forever",
    r"\b(?:is|are|was|were) away\b": "is down, cannot be reached",
    r"\bone's own\b": "your own",
    r"\bwhoever\b": "anyone who",
    r", for (?:they|there|it|he|she|we|you) \w+": "because",
    r"\b(?:whilst|thus|hence|thereby|thereof|upon|lest|likewise|shall)\b": "an everyday word",
    r"\bneed not\b|\bnot till\b|\bat hand\b|\bin its stead\b|\bto be had\b": "an everyday word",
    r"\b(?:is|are) to (?:be|look|say|show|find|publish|hear)\b": "must be, will, should",
    r"\w: give it an? ": "set it to",
    r"\b(?:is|are) no (?:error|fault|orphans?|parameter|text|named)\b": "is not a",
    r"\bsuch a one\b|\bin the very\b": "it, the same",
    r"\b(?:and|or|also|even|None|back) where (?:un\w+|none|no|the server|the block)\b": "if",
    r"\bwhere (?:there (?:is|are) no|it (?:has|does) not|unset|that is unset)\b": "if",
    r"\w\(s\)": "singular or plural",
    r"\btold apart\b": "distinguished",
    r"\bwithout a word\b": "silently",
    r"\bbecame of (?:it|them)\b|\bworked off\b": "the result; shared, linked",
    r"\bdeliveries of another tenant only\b": "only another tenant's deliveries",
}
"""Patterns, and what to write instead."""

HABITS = {
    r"\bbeside\b(?!-)": "with, next to",
    r"\bstand-?by\b": "a replica",
    r"(?<!never) \b(?:a|the|no|any|each) text\b(?! of)|\btexts\b": "a string",
    r"\bat once\b": "immediately; at the same time; together",
    r"\b(?:of ours|of yours|theirs)\b": "our, your, their, before the noun",
    r"\bof (?:which|whom)\b": "a sentence of its own",
    r"\balso if\b": "even if",
    r"\b(?:told|hears?|heard)\b": "shown, notified, received: a machine is not told",
    r"\bwho (?:asks|shows|may look)\b": "users, anyone with",
    r"\bcannot be asked\b|\bask again\b": "cannot be queried; run it again",
    r"\bbecame of\b": "the result",
    r"\bbroke off\b": "failed",
    r"(?<!row )\b(?:is|are) (?:not )?there\b": "exists",
    r"\btakes? (?:\w+ )?out\b": "remove",
    r"\bwhole installation\b": "what it is, by name",
    r"\blapses?\b": "expires",
    r"\bhands? (?:over|on)\b|\bhanded\b": "pass",
    r"(?:^|\. )What(?:ever)? (?:was|writes|cannot)\b": "a noun as subject",
    r"\ba right\b|\blacks? (?:the )?rights?\b|\b(?:other|missing) rights?\b|\bthe right to\b": "privilege",
    r"\bholds? (?:\w+ )?up\b": "delay, block",
    r"\bgoes without\b|\bgoes with --\w": "cannot be combined; needs",
    r"\b(?:no|some)body\b": "a user, a process, nothing; or the passive",
    r"\bwhatever\b(?! the others)": "any, all, not depending on",
    r"\bgoes? on\b": "continues",
    r"\bloo(?:ked|ks) at\b": "checked, checks",
    r"\bhas (?:ever )?come\b": "has arrived",
    r"\basked for\b": "requested, queued, started",
    r"\bby itself\b|\bby themselves\b": "automatically",
    r"\b(?:a|have|with|through|two|each) \w+ of (?:its|their) own\b": "its own, separate, before the noun",
    r"\b(?:and|in|on|,) the page(?:'s)?\b(?! of| in `|, overview)|(?-i:\bThe page\b)(?! of)": "the dashboard",
    r"\bas its writer\b": "as it was recorded",
    r"\bis not right\b": "is wrong",
    r"\bcomes? by\b": "is listed by",
}
"""Habits, and what to write instead."""


@cache
def text_of(path: Path) -> str:
    """Return what a person reads of a file: of a page, without the names of tests and code."""
    text = path.read_text()
    if path.suffix == ".md":
        text = re.sub(r"`[^`\n]*`", "`code`", text)
    return re.sub(r"\s*\n[\s#>|]*", " ", text)


@pytest.mark.parametrize("pattern", NOT_SO, ids=list(NOT_SO.values()))
def test_nobody_reads_a_word_that_we_no_longer_use(pattern):
    """The files and the words, and what to write instead."""
    wrong = re.compile(pattern, re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}: …{text[max(0, hit.start() - 40) : hit.end() + 30]}…"
        for path in FILES
        for text in [text_of(path)]
        for hit in wrong.finditer(text)
    ]
    assert not found, f"write: {NOT_SO[pattern]}\n" + "\n".join(found)


@pytest.fixture(scope="module")
def read() -> list[tuple[str, str]]:
    """What people read who use the package, each with its place, as one line."""
    texts = [*wording.messages(), *wording.descriptions(), *wording.pages()]
    assert len(texts) > 800
    return [(place, re.sub(r"\s*\n[\s#>|]*", " ", text)) for place, text in texts]


@pytest.mark.parametrize("pattern", HABITS, ids=list(HABITS.values()))
def test_what_users_read_has_none_of_these_habits(pattern, read):
    """In comments and docstrings of inner functions they may stand."""
    wrong = re.compile(pattern, re.IGNORECASE)
    found = [
        f"{place}: …{text[max(0, hit.start() - 40) : hit.end() + 30]}…"
        for place, text in read
        for hit in wrong.finditer(text)
    ]
    assert not found, f"write: {HABITS[pattern]}\n" + "\n".join(found)


def test_a_page_of_each_kind_is_read():
    """The patterns name files that there are."""
    assert len(FILES) > 200
    assert {path.suffix for path in FILES} == {".md", ".py", ".html"}
