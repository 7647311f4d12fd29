"""Early stopping: what is compared with what, when, and what becomes of those that lose."""
