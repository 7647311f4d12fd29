"""Search over settings that no list of levels holds: points are proposed wave by wave, and trained as cells."""
