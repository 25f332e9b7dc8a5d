"""A run's folder, read: what evaluate, export, sweep, explain and use all need."""
