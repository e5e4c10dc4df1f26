"""Search over parallel layouts: space, objective, exhaustive ranking and Optuna samplers."""
