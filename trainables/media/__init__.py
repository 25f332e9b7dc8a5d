"""Bytes of images and clips in, pixels out."""
