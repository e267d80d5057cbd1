"""The files of Alembic's revisions and Django's migrations, which each process of pytest checks first."""

from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
REVISIONS = "alembic/versions"
MIGRATIONS = "mailglass_reconcile/contrib/django/migrations"
FOLDERS = (REVISIONS, MIGRATIONS)


def load(folder: str) -> dict[str, str]:
    """Return the texts of a folder's revisions or migrations, by file name."""
    return {path.name: path.read_text() for path in sorted((ROOT / folder).glob("[0-9]*.py"))}


def get_id(name: str) -> str:
    """Return the id of a revision's file."""
    return name.partition("_")[0]


def find_misnamed(revisions: Mapping[str, str], migrations: Mapping[str, str]) -> Iterator[str]:
    """Yield a sentence for each revision that has another id than its name, or no migration of Django's."""
    for name, text in revisions.items():
        path, id_ = f"{REVISIONS}/{name}", get_id(name)
        if f'\nrevision = "{id_}"\n' not in text:
            yield f"{path} has another revision inside than {id_}: rename the file together with its id"
        elif f'Migrate("{id_}")' not in migrations.get(name, ""):
            yield f'{MIGRATIONS}/{name} is missing, or lacks Migrate("{id_}"): Django runs each revision by its name'
