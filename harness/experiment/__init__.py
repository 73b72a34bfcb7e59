"""Settings to records: plan, run, measure, reload and reproduce cells."""
