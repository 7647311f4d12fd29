"""Plan, schedule, remember and report sweeps over training techniques."""
