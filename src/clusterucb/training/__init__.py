"""Loading a model, training its adapter, and what a checkpoint keeps."""
