"""One record batch through the user's functions and the models, on the devices of this process. A batch that fails is
split until the rows that cannot be predicted are known."""
