-- In place of {enqueued} in a statement that brings events to deliveries, after its CTE `reached`: a job for each handler
-- of the type. Without a conflict target, which would need the privilege to read. Sorted: two transactions wait one way
-- only.
enqueued AS (
    INSERT INTO {schema}.mailglass_handler_outbox (event_id, handler, delivery_id, type, next_at, inserted_at)
    SELECT r.event_id, h.handler, r.delivery_id, r.type, now()::timestamp, now()::timestamp
      FROM reached AS r JOIN {schema}.mailglass_handled_types AS h ON h.type = r.type
     ORDER BY r.event_id, h.handler
        ON CONFLICT DO NOTHING
  )
