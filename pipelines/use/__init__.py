"""The work behind `cliptune search`, `classify` and `caption`: a trained adapter, put to use."""
