"""The reference of the YAML, made from the models that read it: a page for people, JSON schemas for editors."""
