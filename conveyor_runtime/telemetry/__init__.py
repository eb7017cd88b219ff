"""What the runtime tells its operators: logs and metrics. Never a decision."""
