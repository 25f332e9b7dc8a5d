"""What `cliptune report` is made of: the study and the result read, stated, drawn and laid out."""
