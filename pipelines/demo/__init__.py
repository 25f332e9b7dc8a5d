"""The embedded demo: drawn scenes, their captions, and a tiny CLIP trained on them; no network."""
