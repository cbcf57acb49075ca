"""The recipe of the embedded speech model: corpus, training, checkpoint, evaluation."""
