"""Turn the shape of a trial into resources, and launch clusters."""
