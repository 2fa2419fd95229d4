"""Per-row gradients of an adapter, made into features that inner products compare."""
