"""A caller's transaction with settings of its own, which must survive our calls."""

SETTINGS = ("search_path", "TimeZone", "row_security", "array_nulls")
OWN = ("pg_temp, public", "Asia/Kathmandu", "on", "off")


def take(connection):
    """Change a transaction's settings."""
    for name, value in zip(SETTINGS, OWN, strict=True):
        connection.exec_driver_sql(f"SET LOCAL {name} = {value if ',' in value else repr(value)}")


def settings_of(connection):
    """Return a transaction's settings."""
    return tuple(connection.exec_driver_sql(f"SELECT current_setting('{name}')").scalar_one() for name in SETTINGS)
