"""Settings and parts of single methods, a file each; `lezo.config.methods` knows them by name."""
