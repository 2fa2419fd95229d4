"""Programs that a model wrote, each in a process of its own, with limits."""
