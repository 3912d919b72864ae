"""What weights are measured by: metrics, judges, reports and model cards."""
