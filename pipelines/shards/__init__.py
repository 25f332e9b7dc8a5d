"""The work behind `cliptune shards`: records checked, written, and accounted for."""
