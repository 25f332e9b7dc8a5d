"""The work behind `cliptune search`: an index of image files, and the images nearest to words."""
