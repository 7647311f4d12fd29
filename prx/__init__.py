"""Train one PRX flow-matching transformer from one configuration."""
