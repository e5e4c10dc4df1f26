"""Training steps of many kinds, each small enough to trace and partition in a moment; published sizes on request."""
