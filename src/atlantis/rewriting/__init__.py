"""Data rewriting: the expert's answers in the words of the model that is to be trained."""
