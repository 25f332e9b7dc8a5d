"""The frozen models: CLIP's towers under any name, and the language model that speaks."""
