"""The ranges that a search draws from, as YAML."""
