"""Rendering of templates. Every link is relative, so that the dashboard works under any path."""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from typing import Any, NamedTuple
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.requests import Request
from starlette.responses import HTMLResponse

from mailglass_reconcile.errors import COMMAND, with_local_names
from mailglass_reconcile.ops.explanation import Fact
from mailglass_reconcile.rules import humanize, times
from mailglass_reconcile.rules.humanize import escape_unprintable, n_of_m, pluralize, sanitize
from mailglass_reconcile.rules.states import MEANINGS, OUTCOMES, short_label

SHOWN_CHARACTERS = 200
EN_DASH = "\N{EN DASH}"
FRAGMENT = "x-fragment"
"""The header by which the script requests only the parts that change."""
REFRESH_SECONDS = 5
LONGEST_ID = 24
"""Characters of an id that fit on a phone."""

STATIC = {
    file.name: file.read_bytes() for file in resources.files("mailglass_reconcile.web").joinpath("static").iterdir()
}
STATIC_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_VERSION = hashlib.sha256(b"".join(STATIC[name] for name in sorted(STATIC))).hexdigest()[:12]
_CODE = re.compile("`([^`]+)`")
_UUID = re.compile(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")
_PLACEHOLDER = re.compile(r"\b(EVENT_ID|DELIVERY_ID|TEXT|URL|ID)\b")
"""In a command that cannot be pasted as it stands."""


def sanitize_text(text: object) -> str:
    """Return a text from a row: escaped where it is not printable, and cut."""
    return sanitize(str(text), SHOWN_CHARACTERS)


def breakable(name: str) -> Markup:
    """Return a name that a browser may break after each underscore."""
    return Markup("_<wbr>").join(name.split("_"))


def with_commas(value: int | None) -> str:
    """Return a number with commas; a dash for None."""
    return EN_DASH if value is None else f"{value:,}"


def format_age(seconds: float | None) -> str:
    """Return a span of time in its two largest units: `45 s`, `3 min 20 s`, `2 h 5 min`, `6 d 1 h`."""
    if seconds is None or seconds < 0:
        return EN_DASH
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole_seconds = int(seconds)
    for name, size, lesser, small in (("d", 86_400, "h", 3_600), ("h", 3_600, "min", 60), ("min", 60, "s", 1)):
        if whole_seconds >= size:
            lesser_units = whole_seconds % size // small
            return f"{whole_seconds // size:,} {name}" + (f" {lesser_units} {lesser}" if lesser_units else "")
    return f"{whole_seconds} s"


class Unit(NamedTuple):
    """The unit of all spans of time in one column of a table."""

    name: str
    seconds: float


UNITS = (Unit("d", 86_400), Unit("h", 3_600), Unit("min", 60), Unit("s", 1), Unit("ms", 0.001))


def choose_unit(seconds: Iterable[float | None]) -> Unit:
    """Choose the unit of a column: the largest that fits at least twice into the column's longest span."""
    longest = max((span for span in seconds if span is not None), default=0.0)
    return next((unit for unit in UNITS if longest >= 2 * unit.seconds), UNITS[-1 if longest else -2])


def format_in_unit(seconds: float | None, unit: Unit) -> str:
    """Return a span of time as a number of *unit*; a dash for None."""
    if seconds is None:
        return EN_DASH
    value = seconds / unit.seconds
    return f"{value:,.0f}" if value >= 100 or value == 0 or unit.name == "ms" else f"{value:.1f}"


def durations(runs: Iterable[Mapping[str, Any]]) -> list[float]:
    """Return the seconds that each run took."""
    return [run["duration_ms"] / 1000 for run in runs]


def describe_counts(run: Mapping[str, Any]) -> Markup:
    """Describe a run by its counts that are not zero, the links first."""
    kind = run["kind"]
    words = _PRUNED if kind == "prune" else _SWEPT
    parts = [f"{run[name]:,} {text}" for name, text in words.items() if run[name]]
    if kind == "dispatch":
        parts = ["handlers ran"]
    elif kind != "prune" and not run["linked"]:
        parts.insert(0, "nothing linked")
    return escape(sanitize_text(", ".join(parts) or "nothing to do"))


_SWEPT: dict[str, str] = {
    **{outcome: outcome for outcome in OUTCOMES},
    "failed": "refused",
    "publish_failed": "not broadcast",
}
_PRUNED = {"expired": "expired", "events": "events deleted", "deliveries": "deliveries deleted"}


def time_ago(iso: str | None, *, full: bool = False, close: bool = False) -> Markup:
    """Return the time since *iso* as a `<time>` element; with *full*, the time itself too.

    With *close*, in two units, for a list whose times are close together. The script adds the viewer's own time to what
    is shown where a pointer rests.
    """
    at = times.parse(iso)
    if at is None:
        return escape(sanitize_text(iso or EN_DASH))
    seconds = times.seconds_ago(at)
    element = _time_element(
        at, f"{format_age(seconds)} ago" if close and seconds >= 1 else humanize.format_ago(seconds)
    )
    return element + Markup(' <span class="small">{}</span>').format(times.format_utc(at)) if full else element


def fact_text(fact: Fact) -> Markup:
    """Return the text of a fact, with its time as a `<time>` element."""
    if fact.at is None:
        return escape(sanitize_text(fact.text))
    before, _, after = fact.text.partition("{}")
    return escape(before) + time_ago(fact.at, full=True) + escape(after)


def shorten_id(text: str) -> str:
    """Shorten an id that is too long for a line: leave out its middle, which identifies it least."""
    return text if len(text) <= LONGEST_ID else f"{text[:8]}…{text[-12:]}"


def epoch_iso(at: float) -> str:
    """Return a time, given in seconds since 1970, in ISO 8601."""
    return dt.datetime.fromtimestamp(at, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def clock_time(at: float, hours: int, *, words: bool = False) -> Markup:
    """Return a time, given in seconds since 1970; with its weekday in a chart of more than a day; as *words*, bare."""
    time = dt.datetime.fromtimestamp(at, dt.UTC)
    label = time.strftime("%a %H:%M" if hours > 24 else "%H:%M")
    return escape(label) if words else _time_element(time, label)


def axis_label(at: float, hours: int) -> str:
    """Return the label of a moment on a chart's axis of time: a day, or a time of day."""
    return dt.datetime.fromtimestamp(at, dt.UTC).strftime("%a %d" if hours > 24 else "%H:%M")


def time_since(iso: str | None) -> str:
    """Return the time since *iso* in its two largest units."""
    at = times.parse(iso)
    return EN_DASH if at is None else format_age(max(0.0, times.seconds_ago(at)))


def mark_code(sentence: str) -> Markup:
    """Render the text in backticks of a sentence as code; a complete command gets a button that copies it."""
    return Markup(_CODE.sub(_as_code, str(escape(sentence))))  # noqa: S704 - escaped before


def _as_code(match: re.Match[str]) -> str:
    text = match[1]
    if not text.startswith(escape(with_local_names(f"`{COMMAND} ")[1:])) or _PLACEHOLDER.search(text):
        return f"<code>{text}</code>"
    return str(command(Markup(text)))  # noqa: S704 - escaped before


def command(text: str) -> Markup:
    """Return a command that can be copied as a whole; on a phone, the ids that are shown are shortened."""
    if escape_unprintable(text) != text:  # it holds foreign input, such as a message's id
        return Markup("<code>{}</code>").format(escape_unprintable(text))
    brief = Markup(_UUID.sub(lambda id_: shorten_id(id_[0]), str(escape(text))))  # noqa: S704 - escaped before
    widths = Markup('<code class="whole">{0}</code><code class="brief">{1}</code>')
    code = widths.format(text, brief) if brief != escape(text) else Markup("<code>{}</code>").format(text)
    copy = Markup('<button class="copy" type="button" data-copy="{0}" aria-label="Copy: {0}" hidden>Copy</button>')
    return Markup('<span class="command">') + code + copy.format(text) + Markup("</span>")


def capitalize_first(sentence: str) -> Markup:
    """Return a sentence with a capital letter at its beginning."""
    return escape(sentence[:1].upper()) + escape(sentence)[1:] if sentence[:1].isalpha() else escape(sentence)


def state_sentence(state: str) -> str:
    """Return the meaning of a state; empty for one that this version does not define."""
    return MEANINGS[state].sentence if state in MEANINGS else ""


def query_string(**values: object) -> str:
    """Return a query of the values that are set, with its question mark; empty if none is."""
    present = {name: value for name, value in values.items() if value not in (None, "", False)}
    return f"?{urlencode(present)}" if present else ""


def _time_element(at: dt.datetime, words: str) -> Markup:
    template = Markup('<time datetime="{}" title="{}">{}</time>')
    return template.format(at.strftime("%Y-%m-%dT%H:%M:%SZ"), times.format_utc(at), words)


FILTERS: tuple[Callable[..., Any], ...] = (
    *(
        format_age,
        breakable,
        capitalize_first,
        clock_time,
        mark_code,
        command,
        pluralize,
        describe_counts,
        durations,
        fact_text,
        format_in_unit,
        epoch_iso,
        shorten_id,
        time_ago,
    ),
    *(with_commas, sanitize_text, state_sentence, n_of_m, short_label, time_since, axis_label, choose_unit),
)


def _make_environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mailglass_reconcile.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update((function.__name__, function) for function in FILTERS)
    environment.globals.update(version=_VERSION, refresh_seconds=REFRESH_SECONDS, query_string=query_string)
    return environment


_ENVIRONMENT = _make_environment()


def path_below_root(request: Request) -> str:
    """Return the path below the application's root, with a leading slash."""
    path: str = request.scope["path"]
    return path.removeprefix(request.scope.get("root_path", "")) or "/"


def render(
    request: Request, template: str, *, status: int = 200, headers: dict[str, str] | None = None, **values: Any
) -> HTMLResponse:
    """Render a page, or only its changing parts if the script requests those."""
    path = path_below_root(request)
    common = {
        "root": "../" * (path.count("/") - 1) or "./",
        "layout": "fragment.html" if FRAGMENT in request.headers else "page.html",
        "here": path,
        "health": None,
    }
    text = _ENVIRONMENT.get_template(template).render({**common, **values})
    return HTMLResponse(text, status, headers={"vary": FRAGMENT, **(headers or {})})
