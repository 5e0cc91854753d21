"""What happens beside the path: dispatch, sweep, query, cancel, redrive, schedule, notify, retention."""
