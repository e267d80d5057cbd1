"""The engine made from the settings."""

import pytest
import sqlalchemy as sa


def test_an_error_of_the_engine_hides_the_parameters(db):
    """They may be addresses: the statement is shown, its values are not."""
    with db.engine.connect() as connection, pytest.raises(sa.exc.DBAPIError) as caught:
        connection.execute(sa.text("SELECT 1 / 0, CAST(:address AS text)"), {"address": "ada@example.com"})
    assert "SELECT 1 / 0" in str(caught.value)
    assert "ada@example.com" not in str(caught.value)
