"""What a disk can do to the log and to publishing: it fails, fills up, or loses power."""
