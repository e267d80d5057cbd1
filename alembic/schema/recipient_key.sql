-- The coarse key of a recipient: equal wherever addresses compare as equal, and a whole address where all of it is ASCII.
-- Indexes and statements have it in place of {recipient_key}; as a function, every INSERT of a role without EXECUTE would
-- fail. `rules.addresses.make_index_key` makes the same of a compared address. Nothing in it depends on a locale or on a
-- search_path, or can fail, and no value is too long for it. The characters that are trimmed are what Python calls white
-- space.
pg_catalog.hashtextextended(coalesce(substring(pg_catalog.lower(pg_catalog.btrim(
    pg_catalog.regexp_replace(
      pg_catalog.btrim(
        pg_catalog.left(recipient, 1000) COLLATE pg_catalog."C",
        E' \t\n\x0b\f\r\x1c\x1d\x1e\x1f\u0085\u00a0\u1680\u2000\u2001\u2002'
        '\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000'),
      '^.*<([^<>]*)>$', E'\\1'),
    E' \t\n\x0b\f\r\x1c\x1d\x1e\x1f\u0085\u00a0\u1680\u2000\u2001\u2002'
    '\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000'))
  FROM '^[!-;=?A-~]+@(?:(?!.*xn--)[!-;=?A-~]+$)?'), ''), 0)
