-- In place of {catch_failure} at the end of a function, which then returns `failure`: an error that concerns only this call
-- becomes a row of the result, so that the caller's transaction continues. Others are raised again.
EXCEPTION WHEN OTHERS THEN
  GET STACKED DIAGNOSTICS error_context = PG_EXCEPTION_CONTEXT;
  failure := {schema}.mailglass_reconcile_failure_v1(SQLSTATE, SQLERRM, error_context);
  IF failure IS NULL THEN
    RAISE;
  END IF;
