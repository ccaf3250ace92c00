"""Times a step beside the textbook's and beside the floor."""
