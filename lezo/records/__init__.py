"""What stands on disk, and how it is read and written; knows no step and no model."""
