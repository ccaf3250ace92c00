"""Parts of single methods, a file each; `lezo.zo.parts` knows them by name."""
