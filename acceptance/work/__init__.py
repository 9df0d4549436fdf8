"""What each stage does, one file a stage; each runs in a process of its own."""
