"""The frozen models: CLIP's towers by any name, and the language model that speaks."""
