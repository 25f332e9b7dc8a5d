"""The work behind `cliptune tune`: the study's memory, and where its trials train."""
