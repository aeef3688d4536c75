"""One script a question, its result beside it."""
