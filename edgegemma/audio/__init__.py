"""Sound: features, encoder, files, microphone, utterances."""
