"""Sound: features, encoder, files, segments."""
